"""The attention kernels against torch in float64: rotation, append to pages, attention; decode, prefill and mixed batches.

usage: python3 attention_check.py libattention_check.so
Exits with 1 where a result is off. Padding rows, a padding sequence without pages, and rows beyond a page's end are part of it.
"""
import ctypes as C
import sys

import torch

lib = C.CDLL(sys.argv[1])
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


class Args(C.Structure):
    _fields_ = (
        [(n, C.c_int32) for n in 'type path plain graph heads kvHeads headDim pageSize window'.split()]
        + [('rows', C.c_uint32), ('batch', C.c_uint32), ('scale', C.c_float)]
        + [(n, C.c_void_p) for n in 'qkv rotated out pool cosSin batchIndices positions qIndptr kvIndptr kvIndices '
           'lastPageLen qIndptrHost kvIndptrHost floats'.split()]
        + [('floatBytes', C.c_uint64), ('ints', C.c_void_p), ('intsHost', C.c_void_p), ('intBytes', C.c_uint64)])


PAGE = 16
floats = torch.empty(256 << 20, dtype=torch.uint8, device='cuda')
ints = torch.empty(8 << 20, dtype=torch.uint8, device='cuda')
ints_host = torch.empty(8 << 20, dtype=torch.uint8).pin_memory()


def rotate(x, positions, theta=10000.0):
    d = x.shape[-1]
    freq = theta ** (-torch.arange(0, d, 2, device='cuda', dtype=torch.float64) / d)
    angle = positions.double()[:, None] * freq
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x[..., : d // 2], x[..., d // 2:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def check(dtype, heads, kv_heads, d, new, cached, path, graph, plain=False, window=0, pad_rows=0, pad_seqs=0):
    torch.manual_seed(heads * 131 + d + len(new))
    scale, batch = d ** -0.5, len(new) + pad_seqs
    i32 = lambda v: torch.tensor(v, dtype=torch.int32, device='cuda')
    total = [n + c for n, c in zip(new, cached)]
    pages = [(t + PAGE - 1) // PAGE for t in total]
    n_pages = sum(pages) + 3
    order = torch.randperm(n_pages)[: sum(pages)].tolist()
    q_indptr = [0] + torch.tensor(new).cumsum(0).tolist()
    kv_indptr = [0] + torch.tensor(pages).cumsum(0).tolist()
    q_indptr += [q_indptr[-1] + (i + 1 if path else 0) for i in range(pad_seqs)]
    kv_indptr += [kv_indptr[-1]] * pad_seqs
    last = [(t - 1) % PAGE + 1 for t in total] + [1] * pad_seqs
    rows = sum(new) + pad_seqs + pad_rows
    seq_of = [i for i, n in enumerate(new) for _ in range(n)] + [-1] * (rows - sum(new))
    pos = [c + j for n, c in zip(new, cached) for j in range(n)] + [0] * (rows - sum(new))

    qkv = torch.randn(rows, (heads + 2 * kv_heads) * d, device='cuda').to(dtype)
    pool = torch.full((n_pages, 2, PAGE, kv_heads, d), float('nan'), device='cuda', dtype=dtype)
    history = [torch.randn(2, c, kv_heads, d, device='cuda').to(dtype) for c in cached]
    for s, h in enumerate(history):
        for t in range(h.shape[1]):
            pool[order[kv_indptr[s] + t // PAGE], :, t % PAGE] = h[:, t]
    # FlashInfer loads whole pages and masks by weight zero: a page's tail must hold finite values, as a pool that was
    # cleared once does.
    pool.nan_to_num_(0.0)
    angle = torch.arange(4096, device='cuda', dtype=torch.float64)[:, None] * (
        10000.0 ** (-torch.arange(0, d, 2, device='cuda', dtype=torch.float64) / d))
    cos_sin = torch.cat([angle.cos(), angle.sin()], -1).float().contiguous()
    out = torch.full((rows, heads, d), float('nan'), device='cuda', dtype=dtype)
    rotated = torch.zeros_like(out)

    dev = [i32(v) for v in (seq_of, pos, q_indptr, kv_indptr, order, last)]
    host = [torch.tensor(v, dtype=torch.int32) for v in (q_indptr, kv_indptr)]
    torch.cuda.synchronize()
    args = Args(TYPES[dtype], path, plain, graph, heads, kv_heads, d, PAGE, window, rows, batch, scale,
                qkv.data_ptr(), rotated.data_ptr(), out.data_ptr(), pool.data_ptr(), cos_sin.data_ptr(),
                *[t.data_ptr() for t in dev], *[t.data_ptr() for t in host], floats.data_ptr(), floats.numel(),
                ints.data_ptr(), ints_host.data_ptr(), ints.numel())
    status = lib.checkStep(C.byref(args))
    if status:
        return f'status {status}', False
    torch.cuda.synchronize()

    x = qkv.double().view(rows, heads + 2 * kv_heads, d)
    worst, finite = 0.0, True
    for s, (n, c) in enumerate(zip(new, cached)):
        r = slice(q_indptr[s], q_indptr[s] + n)
        p = torch.arange(c, c + n, device='cuda')
        # Queries and keys are rounded to the cache's type after the rotation.
        q = rotate(x[r, :heads], p).to(dtype).double()
        k = torch.cat([history[s][0].double(), rotate(x[r, heads:heads + kv_heads], p).to(dtype).double()])
        v = torch.cat([history[s][1].double(), x[r, heads + kv_heads:]])
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
        scores = torch.einsum('qhd,khd->hqk', q, k) * scale
        key = torch.arange(c + n, device='cuda')
        hidden = key[None] > p[:, None]
        if window:
            hidden |= key[None] <= p[:, None] - window
        ref = torch.einsum('hqk,khd->qhd', scores.masked_fill(hidden, -torch.inf).softmax(-1), v)
        got = out[r].double()
        worst = max(worst, ((got - ref).norm() / ref.norm()).item()) if got.isfinite().all() else float('nan')
    padding = out[sum(new):]
    note = '' if padding.numel() == 0 else f' padding rows finite: {bool(padding.isfinite().all())}'
    return f'{worst:.2e}{note}', worst < LIMITS[dtype]


def main():
    bad = 0
    decode = ([1] * 5, [0, 15, 16, 700, 1999])
    mixed = ([1, 300, 1, 17, 64], [400, 0, 31, 16, 100])
    for dtype in (torch.bfloat16, torch.float16):
        for heads, kv, d in ((32, 32, 128), (32, 16, 128), (24, 8, 128), (32, 8, 128), (32, 4, 128), (24, 8, 64), (4, 2, 64)):
            for path, graph, (new, cached) in ((1, 0, decode), (1, 1, decode), (0, 0, decode), (0, 1, decode), (0, 0, mixed)):
                for window in (0, 100):
                    pads = dict(pad_seqs=3) if graph else dict(pad_rows=5) if len(set(new)) > 1 else {}
                    text, ok = check(dtype, heads, kv, d, new, cached, path, graph, window=window, **pads)
                    bad += not ok
                    print(f'{str(dtype)[6:]:9} {heads}/{kv} x {d} {"decode" if path else "prefill"} graph={graph} '
                          f'{"mixed" if new is mixed[0] else "rows=1"} window={window}: {text} {"ok" if ok else "BAD"}')
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for heads, kv, d in ((4, 2, 64), (8, 2, 32), (8, 8, 96), (8, 1, 128), (4, 4, 256)):
            for window in (0, 100):
                text, ok = check(dtype, heads, kv, d, *mixed, 0, 0, plain=True, window=window, pad_rows=5)
                bad += not ok
                print(f'{str(dtype)[6:]:9} {heads}/{kv} x {d} plain mixed window={window}: {text} {"ok" if ok else "BAD"}')
    print(f'{bad} bad')
    return bad != 0


sys.exit(main())
