"""Weights and tokens for `engine_shapes check`, and its logits against torch.

usage: engine_shapes_check.py generate DIR; engine_shapes check DIR; engine_shapes_check.py compare DIR
`compare` holds each file of logits against a float32 model of the same bfloat16 weights, and shows what torch's own bfloat16
model differs by: the engines must be no further off than twice that.
"""
import sys

import torch
import torch.nn.functional as F

WIDTH, HEADS, KV, D, FFN, VOCAB, LAYERS, EPS, PER_SEQUENCE = 1024, 8, 2, 128, 2816, 4096, 2, 1e-5, 256
QKV = (HEADS + 2 * KV) * D


def specs():
    yield 'embed', (VOCAB, WIDTH)
    for i in range(LAYERS):
        for name, dims in (('norm1', (WIDTH,)), ('qkv', (QKV, WIDTH)), ('o', (WIDTH, HEADS * D)), ('norm2', (WIDTH,)),
                           ('gate_up', (2 * FFN, WIDTH)), ('down', (WIDTH, FFN))):
            yield f'{i}.{name}', dims
    yield 'norm', (WIDTH,)
    yield 'lm_head', (VOCAB, WIDTH)


def generate(folder):
    for file, seed in (('a', 1), ('b', 2)):
        torch.manual_seed(seed)
        with open(f'{folder}/{file}.bin', 'wb') as out:
            for name, dims in specs():
                w = torch.randn(dims)
                w = 1 + 0.1 * w if len(dims) == 1 else w * (1.0 if name == 'embed' else 2.0 * dims[1] ** -0.5)
                out.write(w.bfloat16().view(torch.int16).numpy().tobytes())
    torch.manual_seed(3)
    torch.randint(0, VOCAB, (4, PER_SEQUENCE), dtype=torch.int32).numpy().tofile(f'{folder}/tokens.bin')


def load(path):
    data = torch.frombuffer(bytearray(open(path, 'rb').read()), dtype=torch.bfloat16)
    weights, at = {}, 0
    for name, dims in specs():
        n = torch.Size(dims).numel()
        weights[name] = data[at:at + n].view(dims).cuda()
        at += n
    assert at == data.numel()
    return weights


def forward(w, tokens, dtype):
    w = {k: v.to(dtype) for k, v in w.items()}
    n = tokens.numel()

    def norm(x, g):
        f = x.float()
        return (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + EPS)).to(dtype) * g

    angle = torch.arange(n, device='cuda')[:, None] * (10000.0 ** (-torch.arange(0, D, 2, device='cuda').double() / D))
    cos, sin = (t.repeat(1, 2).float()[:, None] for t in (angle.cos(), angle.sin()))

    def rotate(x):
        f = x.float()
        return (f * cos + torch.cat([-f[..., D // 2:], f[..., :D // 2]], -1) * sin).to(dtype)

    x = w['embed'][tokens]
    for i in range(LAYERS):
        qkv = F.linear(norm(x, w[f'{i}.norm1']), w[f'{i}.qkv']).view(n, HEADS + 2 * KV, D)
        q, k, v = qkv.split((HEADS, KV, KV), 1)
        q, k, v = (t.transpose(0, 1)[None] for t in (rotate(q), rotate(k), v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = F.linear(y[0].transpose(0, 1).reshape(n, -1), w[f'{i}.o']) + x
        gate, up = F.linear(norm(x, w[f'{i}.norm2']), w[f'{i}.gate_up']).chunk(2, -1)
        x = F.linear(gate * torch.sigmoid(gate) * up, w[f'{i}.down']) + x
    return F.linear(norm(x, w['norm']), w['lm_head']).float()


def rows():
    """(sequence, position) of each row of logits, in the order engine_shapes writes them."""
    at = [5, 37, 130, 0]
    yield from ((s, at[s] - 1) for s in range(3))
    for _ in range(14):
        for s in range(3):
            at[s] += 1
            yield s, at[s] - 1
    for s, n in ((0, 1), (1, 1), (2, 1), (3, 20)):
        at[s] += n
        yield s, at[s] - 1
    for _ in range(3):
        for s in range(4):
            at[s] += 1
            yield s, at[s] - 1


def compare(folder):
    torch.backends.cuda.matmul.allow_tf32 = False
    tokens = torch.frombuffer(bytearray(open(f'{folder}/tokens.bin', 'rb').read()), dtype=torch.int32).view(4, -1).cuda()
    b = load(f'{folder}/b.bin')
    full = [forward(b, t.long(), torch.float32) for t in tokens]
    half = [forward(b, t.long(), torch.bfloat16) for t in tokens]
    other = [forward(load(f'{folder}/a.bin'), t.long(), torch.float32) for t in tokens]
    order = list(rows())
    pick = lambda per: torch.stack([per[s][p] for s, p in order])
    ref = pick(full)

    def report(name, got):
        difference = (got.log_softmax(-1) - ref.log_softmax(-1)).abs()
        norm = ((got - ref).norm() / ref.norm()).item()
        print(f'{name:28} |d|/|ref| {norm:.2e}  log-probability: mean {difference.mean():.4f} largest {difference.max():.3f}'
              f'  same argmax {(got.argmax(-1) == ref.argmax(-1)).float().mean():.3f}')
        return norm

    noise = report('torch bfloat16', pick(half))
    report('torch, weights a (a refit that did nothing)', pick(other))
    bad = 0
    for name in ('layer_decode', 'layer_tiles', 'whole_decode'):
        data = torch.frombuffer(bytearray(open(f'{folder}/logits_{name}.bin', 'rb').read()), dtype=torch.float32)
        bad += not report(name, data.view(len(order), VOCAB).cuda()) < 2 * noise
    print(f'{bad} bad')
    return bad != 0


sys.exit({'generate': generate, 'compare': compare}[sys.argv[1]](sys.argv[2]))
