"""What this GPU does at best, measured: JSON on the standard output.

    python3 limits.py

copy: device to device, bytes read and written. read: the sum of 8 GiB. matmul: bfloat16, 8192 cubed, random operands.
upload: from pinned host memory.
"""

import json

import torch


def milliseconds(call, repeats=20, warmup=3):
    """Median, by events."""
    for _ in range(warmup):
        call()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def main():
    source = torch.randn(2 << 30, device="cuda", dtype=torch.float32)
    target = torch.empty_like(source)
    size = source.numel() * 4
    copy = 2 * size / milliseconds(lambda: target.copy_(source)) / 1e6
    read = size / milliseconds(lambda: source.sum()) / 1e6
    vector = torch.randn(32768, device="cuda", dtype=torch.bfloat16)
    matrix = source.view(torch.bfloat16)[: 32768 * 65536].view(65536, 32768)
    matvec = matrix.numel() * 2 / milliseconds(lambda: torch.mv(matrix, vector)) / 1e6
    del target
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    matmul = 2 * 8192**3 / milliseconds(lambda: a @ b) / 1e9
    host = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True).random_()
    device = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    upload = host.numel() / milliseconds(lambda: device.copy_(host, non_blocking=True)) / 1e6
    print(
        json.dumps(
            {
                "gpu": torch.cuda.get_device_name(),
                "torch": torch.__version__,
                "copyGBs": round(copy),
                "readGBs": round(max(read, matvec)),
                "matmulTFLOPs": round(matmul),
                "uploadGBs": round(upload, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
