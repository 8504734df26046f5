"""What 16-bit arithmetic itself costs the demo model, against the float32 reference: the yardstick for an engine's differences.

    python3 test/gpu/bf16_yardstick.py          needs numpy, and no GPU; takes a minute

Every operation's result is rounded to bfloat16 where transformers rounds it; sums are float32. Differences are of the log-probabilities of
the reference's prompts and outputs, as in logits.mjs.
"""

import json
import pathlib
import struct

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAYERS, HEADS, KV_HEADS, HEAD, EPSILON, THETA = 6, 4, 2, 64, 1e-5, 10000.0


def to_bf16(x):
    """Nearest bfloat16, ties to even, as float32."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).reshape(x.shape)


def to_fp16(x):
    return x.astype(np.float16).astype(np.float32)


def exact(x):
    return x


def read_weights(path):
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    weights = {}
    for name, tensor in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + offset for offset in tensor["data_offsets"])
        bits = np.frombuffer(data[start:end], dtype=np.uint16).astype(np.uint32) << 16
        weights[name] = bits.view(np.float32).reshape(tensor["shape"])
    return weights


def log_probabilities(weights, ids, rounded, logits_rounded):
    """[tokens, vocabulary]"""
    count = len(ids)
    angles = np.arange(count)[:, None] / THETA ** (np.arange(0, HEAD, 2) / HEAD)
    cos, sin = (np.concatenate([f(angles)] * 2, 1).astype(np.float32)[:, None] for f in (np.cos, np.sin))
    causal = np.tril(np.ones((count, count), bool))

    def norm(x, name):
        return rounded(rounded(x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON)) * weights[name])

    def linear(x, name):
        return rounded(x @ weights[name].T)

    def rotate(x):
        return rounded(x * cos + np.concatenate([-x[..., HEAD // 2 :], x[..., : HEAD // 2]], -1) * sin)

    x = weights["model.embed_tokens.weight"][ids]
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        y = norm(x, layer + "input_layernorm.weight")
        q = rotate(linear(y, layer + "self_attn.q_proj.weight").reshape(count, HEADS, HEAD))
        k = rotate(linear(y, layer + "self_attn.k_proj.weight").reshape(count, KV_HEADS, HEAD))
        v = linear(y, layer + "self_attn.v_proj.weight").reshape(count, KV_HEADS, HEAD)
        k, v = (np.repeat(part, HEADS // KV_HEADS, 1) for part in (k, v))
        scores = np.where(causal, np.einsum("qhd,khd->hqk", q, k) / HEAD**0.5, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        attention = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v)
        x = rounded(x + linear(rounded(attention).reshape(count, -1), layer + "self_attn.o_proj.weight"))
        y = norm(x, layer + "post_attention_layernorm.weight")
        gate = linear(y, layer + "mlp.gate_proj.weight")
        inner = rounded(rounded(gate / (1 + np.exp(-gate))) * linear(y, layer + "mlp.up_proj.weight"))
        x = rounded(x + linear(inner, layer + "mlp.down_proj.weight"))
    logits = logits_rounded(norm(x, "model.norm.weight") @ weights["model.embed_tokens.weight"].T).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def main():
    weights = read_weights(ROOT / "models" / "tiny-storyteller" / "model.safetensors")
    goldens = json.loads((ROOT / "test" / "fixtures" / "tiny-storyteller-goldens" / "goldens.json").read_text())
    cases = {
        "float32": (exact, exact),
        "bfloat16": (to_bf16, to_bf16),
        "bfloat16, logits float32": (to_bf16, exact),
        "bfloat16, logits float16": (to_bf16, to_fp16),
    }
    for name, (rounded, logits_rounded) in cases.items():
        differences = []
        for prompt in goldens["prompts"]:
            tokens = prompt["ids"] + prompt["greedy"]["ids"]
            expected = prompt["prompt_logprobs"] + prompt["greedy"]["logprobs"]
            ours = log_probabilities(weights, tokens, rounded, logits_rounded)
            for at in range(1, len(tokens)):
                differences.append(abs(ours[at - 1, tokens[at]] - expected[at]))
        differences = np.array(differences)
        print(
            f"{name:28} mean {differences.mean():.6f}  max {differences.max():.4f}  above 0.1: {(differences > 0.1).sum()} of {len(differences)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
