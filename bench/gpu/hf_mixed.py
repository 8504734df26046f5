"""transformers on the loads of serving.mjs: JSON in its row names.

    node bench/gpu/serving.mjs --write-requests REQUESTS.json
    python3 hf_mixed.py CONFIG.json REQUESTS.json OUT.json [--rows mixed] [--seconds N] [--batch 32] [--device cuda]

A load runs in static batches in order of arrival, padded on the left, SDPA, bfloat16; a batch runs until the last of its sequences has its
tokens, and only tokens that were asked for count. Weights are random, of the distribution that make_random_llama.py writes: normal, std 0.02,
norms 1. With --seconds a load ends with the first batch that ends later; the report says how many of its batches ran. Rows: ttft, single, and
the loads of the file.
"""

import argparse
import json
import statistics
import time

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM


def random_model(path, device):
    config = AutoConfig.from_pretrained(path)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.fill_(1)
        else:
            parameter.data.normal_(0, 0.02, generator=generator)
    # Outputs have the length that was asked for, whatever the tokens.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


class Runner:
    def __init__(self, model, device):
        self.model, self.device = model, device

    @torch.inference_mode()
    def seconds(self, prompts, outputs):
        """Of one static batch: `prompts` lists of tokens, `outputs` wanted tokens of each."""
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(prompts):
            ids[row, longest - len(tokens) :] = torch.tensor(tokens)
            mask[row, longest - len(tokens) :] = 1
        self.synchronize()
        started = time.perf_counter()
        ids, mask = ids.to(self.device), mask.to(self.device)
        out = self.model.generate(ids, attention_mask=mask, max_new_tokens=max(outputs), do_sample=False, use_cache=True)
        self.synchronize()
        elapsed = time.perf_counter() - started
        if out.shape[1] != longest + max(outputs):
            raise RuntimeError(f"{out.shape[1] - longest} tokens instead of {max(outputs)}")
        return elapsed

    def synchronize(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def load(self, requests, size, limit):
        batches = [requests[at : at + size] for at in range(0, len(requests), size)]
        seconds, tokens, done = 0.0, 0, 0
        for batch in batches:
            outputs = [request["output"] for request in batch]
            seconds += self.seconds([request["tokens"] for request in batch], outputs)
            tokens += sum(outputs)
            done += 1
            if limit is not None and seconds > limit:
                break
        return {
            "tokensPerSecond": tokens / seconds,
            "seconds": seconds,
            "batchSize": size,
            "batches": {"measured": done, "of": len(batches)},
            "requests": sum(map(len, batches[:done])),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("requests")
    parser.add_argument("out")
    parser.add_argument("--rows", default="mixed")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    with open(args.requests) as file:
        loads = json.load(file)
    model = random_model(args.config, args.device)
    runner = Runner(model, args.device)
    report = {
        "program": "transformers",
        "version": transformers.__version__,
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else args.device,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "settings": {"attention": "sdpa", "dtype": "bfloat16", "batchSize": args.batch, "padding": "left"},
        "rows": {},
    }

    def note(name, value):
        report["rows"][name] = value
        print(name, json.dumps(value), flush=True)
        with open(args.out, "w") as file:
            json.dump(report, file, indent=1)

    def prompt(length):
        return torch.randint(5, min(30000, model.config.vocab_size), (length,)).tolist()

    torch.manual_seed(1)
    runner.seconds([prompt(64)], [8])
    for row in args.rows.split(","):
        try:
            if row == "ttft":
                for length in (128, 512, 1024, 2048):
                    if length < model.config.max_position_embeddings:
                        note(f"ttft-{length}", {"ms": statistics.median(runner.seconds([prompt(length)], [1]) * 1e3 for _ in range(6))})
            elif row == "single":
                few, many = (runner.seconds([prompt(128)], [count]) for count in (8, 72))
                note("single", {"tokensPerSecond": 64 / (many - few)})
            else:
                note(row, runner.load(loads[row]["requests"], args.batch, args.seconds))
        except Exception as error:  # the other rows still count
            note(row, {"error": repr(error)})


if __name__ == "__main__":
    main()
