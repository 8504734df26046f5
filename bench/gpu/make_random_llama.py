"""Writes a model folder of a Llama-shaped config with random weights: for measuring, where a checkpoint is not at hand.

    python3 make_random_llama.py CONFIG.json OUT_FOLDER [--layers N] [--seed N] [--device cuda]

Weights are normal, std 0.02, norms 1. The tokenizer is random_tokenizer.py's, one made-up word per id: it turns every output into text.
"""

import argparse
import json
import os
import struct

import torch
from random_tokenizer import write_tokenizer

SHARD_BYTES = 4 << 30
DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def shapes(config):
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or hidden // heads
    yield "model.embed_tokens.weight", (vocab, hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", (hidden,)
        yield layer + "self_attn.q_proj.weight", (heads * head, hidden)
        yield layer + "self_attn.k_proj.weight", (kv_heads * head, hidden)
        yield layer + "self_attn.v_proj.weight", (kv_heads * head, hidden)
        yield layer + "self_attn.o_proj.weight", (hidden, heads * head)
        yield layer + "post_attention_layernorm.weight", (hidden,)
        yield layer + "mlp.gate_proj.weight", (inner, hidden)
        yield layer + "mlp.up_proj.weight", (inner, hidden)
        yield layer + "mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not config.get("tie_word_embeddings", False):
        yield "lm_head.weight", (vocab, hidden)


def write_shard(path, tensors, dtype, make):
    """`tensors`: [(name, shape)]. The header is padded to 8 bytes, as the format wants."""
    header, offset = {}, 0
    for name, shape in tensors:
        size = torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape in tensors:
            file.write(memoryview(make(shape).cpu().view(torch.uint8).numpy()).cast("B"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("out")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    with open(args.config) as file:
        config = json.load(file)
    if args.layers is not None:
        config["num_hidden_layers"] = args.layers
    dtype = getattr(torch, config.get("torch_dtype", "bfloat16"))
    generator = torch.Generator(args.device).manual_seed(args.seed)

    def make(shape):
        if len(shape) == 1:
            return torch.ones(shape, dtype=dtype, device=args.device)
        return torch.randn(shape, generator=generator, device=args.device, dtype=torch.float32).mul_(0.02).to(dtype)

    os.makedirs(args.out, exist_ok=True)
    shards, size = [[]], 0
    for name, shape in shapes(config):
        bytes_ = torch.Size(shape).numel() * dtype.itemsize
        if size + bytes_ > SHARD_BYTES and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += bytes_
    weight_map = {}
    for i, tensors in enumerate(shards):
        name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        write_shard(os.path.join(args.out, name), tensors, dtype, make)
        weight_map.update({tensor: name for tensor, _ in tensors})
    files = {
        "config.json": config,
        "model.safetensors.index.json": {"metadata": {}, "weight_map": weight_map},
    }
    for name, content in files.items():
        with open(os.path.join(args.out, name), "w") as file:
            json.dump(content, file)
    write_tokenizer(args.out, config["vocab_size"])


if __name__ == "__main__":
    main()
