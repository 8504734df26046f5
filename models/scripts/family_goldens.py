"""Random miniature models of each family, with reference values from transformers: float32, eager attention, CPU.
  python family_goldens.py out_dir
Writes <name>/config.json, <name>/model.safetensors (bfloat16) and goldens.json: per model the prompt's
log-probabilities, the last position's logits and a greedy continuation, all with the weights upcast to float32."""
import json, os, sys
import torch, transformers
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

out = sys.argv[1]
torch.set_num_threads(1)
BASE = dict(vocab_size=40, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=128, rms_norm_eps=1e-5, hidden_act="silu", tie_word_embeddings=False,
            bos_token_id=0, eos_token_id=1, pad_token_id=None, attn_implementation="eager")
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
MODELS = {
    "llama-biases": (LlamaConfig, LlamaForCausalLM, dict(head_dim=8, attention_bias=True, mlp_bias=True)),
    "llama-3-rope": (LlamaConfig, LlamaForCausalLM, dict(head_dim=16, rope_parameters=LLAMA3)),
    "llama-linear-rope": (LlamaConfig, LlamaForCausalLM, dict(hidden_size=32, tie_word_embeddings=True, num_key_value_heads=4, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0))),
    "mistral-window": (MistralConfig, MistralForCausalLM, dict(head_dim=8, sliding_window=7)),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, dict(hidden_size=32, rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "qwen2-window": (Qwen2Config, Qwen2ForCausalLM, dict(hidden_size=32, use_sliding_window=True, sliding_window=9, max_window_layers=1)),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, dict(head_dim=16, tie_word_embeddings=True)),
}
goldens = dict(transformers=transformers.__version__, torch=torch.__version__.split("+")[0], models={})
for seed, (name, (Config, Model, fields)) in enumerate(MODELS.items()):
    generator = torch.Generator().manual_seed(10 + seed)
    model = Model(Config(**{**BASE, **fields})).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            # Norms near one and everything else large enough that attention and windows matter.
            values = torch.randn(p.shape, generator=generator)
            p.copy_((1 + 0.2 * values if "norm" in key else 0.35 * values).bfloat16().float())
    folder = os.path.join(out, name)
    os.makedirs(folder, exist_ok=True)
    state = {k: v.bfloat16().contiguous() for k, v in model.state_dict().items() if not (k == "lm_head.weight" and model.config.tie_word_embeddings)}
    save_file(state, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    model.config.dtype = "bfloat16"
    model.config.architectures = [Model.__name__]
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(model.config.to_dict(), f, indent=1, sort_keys=True)
        f.write("\n")
    ids = torch.randint(2, 40, (1, 45), generator=generator)
    with torch.no_grad():
        logits = model(ids).logits[0]
        logprobs = logits.log_softmax(-1)
        sequence, greedy, gaps = ids, [], []
        for _ in range(20):
            last = model(sequence).logits[0, -1]
            top = last.topk(2).values
            gaps.append(round((top[0] - top[1]).item(), 5))
            greedy.append(int(last.argmax()))
            sequence = torch.cat([sequence, torch.tensor([[greedy[-1]]])], 1)
    goldens["models"][name] = dict(ids=ids[0].tolist(), prompt_logprobs=[None] + [round(logprobs[i, t].item(), 6) for i, t in enumerate(ids[0, 1:].tolist())],
                                   logits=[round(x, 6) for x in logits[-1].tolist()], greedy=greedy, min_gap=min(gaps))
    print(f"{name:18} min gap {min(gaps):.4f}", greedy)
with open(os.path.join(out, "goldens.json"), "w") as f:
    json.dump(goldens, f)
    f.write("\n")
