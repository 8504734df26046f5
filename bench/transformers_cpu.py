"""The other side of the comparison: transformers on the CPU. Reads a JSON job from stdin, writes JSON lines to stdout.
  {"model": folder, "dtype": "float32" | "bfloat16", "threads": n}          once
  {"prompts": [[ids], ...], "new_tokens": n}                                any number; equal prompt lengths, so nothing is padded
Each job is answered with {"seconds": s, "tokens": [[new ids], ...]}."""
import json, sys, time
import torch
import transformers
from transformers import AutoModelForCausalLM

setting = json.loads(sys.stdin.readline())
torch.set_num_threads(setting["threads"])
model = AutoModelForCausalLM.from_pretrained(setting["model"], dtype=getattr(torch, setting["dtype"]), attn_implementation="sdpa").eval()
model.generation_config.eos_token_id = None  # as many tokens as asked for, and none of them forbidden
print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    ids = torch.tensor(job["prompts"])
    with torch.inference_mode():
        started = time.perf_counter()
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                             max_new_tokens=job["new_tokens"])
        seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "tokens": out[:, ids.shape[1]:].tolist()}), flush=True)
