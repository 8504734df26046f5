"""vLLM on the loads of serving.mjs: JSON in its row names.

    node bench/gpu/serving.mjs --write-requests REQUESTS.json --rows batch,waves,mixed,long
    python3 vllm_compare.py MODEL_FOLDER REQUESTS.json OUT.json [--rows ttft,single,batch,mixed] [--repeats 2]

MODEL_FOLDER is one of make_random_llama.py, so that both programs multiply the same numbers; with its config.json alone and --dummy vLLM makes
up weights of its own. Greedy, bfloat16, no prefix cache, up to 256 sequences, contexts of 4096 tokens, no detokenising; all else is as vLLM
sets it, the engine's own process and asynchronous scheduling among it: the report says what was on.
"""

import argparse
import json
import os
import random
import statistics
import time

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")


def upper_median(values):
    """As serving.mjs takes it: of two, the larger."""
    return sorted(values)[len(values) // 2]


class Runner:
    def __init__(self, llm, sampling_params):
        self.llm, self.sampling_params = llm, sampling_params

    def seconds(self, requests):
        prompts = [{"prompt_token_ids": request["tokens"]} for request in requests]
        params = [self.sampling_params(temperature=0.0, max_tokens=request["output"], ignore_eos=True, detokenize=False) for request in requests]
        started = time.perf_counter()
        results = self.llm.generate(prompts, params, use_tqdm=False)
        elapsed = time.perf_counter() - started
        for request, result in zip(requests, results):
            if len(result.outputs[0].token_ids) != request["output"]:
                raise RuntimeError(f"{len(result.outputs[0].token_ids)} tokens instead of {request['output']}")
        return elapsed

    def load(self, requests, repeats):
        tokens = sum(request["output"] for request in requests)
        rates = [tokens / self.seconds(requests) for _ in range(repeats)]
        rate = upper_median(rates)
        return {"tokensPerSecond": rate, "seconds": tokens / rate, "requests": len(requests), "all": [round(each) for each in rates]}


def settings(llm, vllm):
    """What the engine runs with, as far as this version tells."""
    config = llm.llm_engine.vllm_config
    found = {"multiprocessing": bool(vllm.envs.VLLM_ENABLE_V1_MULTIPROCESSING)}
    for section, names in {
        "scheduler_config": ("async_scheduling", "max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill"),
        "cache_config": ("block_size", "gpu_memory_utilization", "enable_prefix_caching", "num_gpu_blocks"),
        "compilation_config": ("mode", "cudagraph_mode"),
        "model_config": ("dtype", "max_model_len", "enforce_eager"),
        "load_config": ("load_format",),
    }.items():
        for name in names:
            value = getattr(getattr(config, section, None), name, None)
            found[name] = value if isinstance(value, (bool, int, float, type(None))) else str(value)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("requests")
    parser.add_argument("out")
    parser.add_argument("--rows", default="ttft,single,batch,mixed")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dummy", action="store_true")
    args = parser.parse_args()
    with open(args.requests) as file:
        loads = json.load(file)

    import torch
    import vllm

    started = time.perf_counter()
    llm = vllm.LLM(
        model=args.model,
        load_format="dummy" if args.dummy else "auto",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=4096,
        max_num_seqs=256,
        enable_prefix_caching=False,
    )
    report = {
        "program": "vLLM",
        "version": vllm.__version__,
        "torch": torch.__version__,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "startSeconds": time.perf_counter() - started,
        "settings": settings(llm, vllm),
        "rows": {},
    }
    print(json.dumps(report), flush=True)
    runner = Runner(llm, vllm.SamplingParams)
    source = random.Random(1)

    def alone(length, output):
        return [{"tokens": [source.randrange(5, 30000) for _ in range(length)], "output": output}]

    def note(name, value):
        report["rows"][name] = value
        print(name, json.dumps(value), flush=True)
        with open(args.out, "w") as file:
            json.dump(report, file, indent=1)

    runner.seconds([request for _ in range(4) for request in alone(64, 8)])
    for row in args.rows.split(","):
        try:
            if row == "ttft":
                for length in (128, 512, 1024, 2048):
                    times = [runner.seconds(alone(length, 1)) * 1e3 for _ in range(10)]
                    note(f"ttft-{length}", {"ms": upper_median(times), "all": [round(ms, 2) for ms in times]})
            elif row == "single":
                rates = []
                for _ in range(3):
                    few, many = (runner.seconds(alone(128, output)) for output in (16, 272))
                    rates.append(256 / (many - few))
                note("single", {"tokensPerSecond": statistics.median(rates), "all": [round(rate, 1) for rate in rates]})
            else:
                note(row, runner.load(loads[row]["requests"], args.repeats))
        except Exception as error:  # the other rows still count
            note(row, {"error": repr(error)})


# The engine's process imports this file again.
if __name__ == "__main__":
    main()
