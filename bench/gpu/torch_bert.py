"""
BERT-base of random weights on torch, float16, sequences of 128 tokens: transformers' BertModel, eager and compiled. Latency of one request at
a time, and the highest rate of Poisson arrivals with P99 <= 100 ms under dynamic batching: up to MAX requests a batch, the first of
which waits no longer than DELAY. JSON to a file.

    python3 torch_bert.py OUT.json [--max-batch 128] [--max-delay-ms 2] [--sizes 1,32,128] [--seconds 2] [--no-mask]

Takes about 60 s with both modes, 35 s with `--modes compiled`; the file is written after every measurement.

The policy is the one of this package's sessions: one batch runs, one more stands by if it is full, batches are filled up to the next of
`--sizes`. The batcher is a bare loop over arrival times: a request costs it one copy in and one copy out, and no call, future or
queue of Python's, which a server would pay for.
"""

import argparse
import collections
import json
import os
import sys
import time

import numpy
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "models"))
import nets

LENGTH = nets.BERT_SEQUENCE
DISTINCT = 512
LIMIT_MS = 100.0
DEPTH = 2


def say(text):
    print(text, file=sys.stderr, flush=True)


class Engine:
    """A model with pinned staging memory for each size and each batch in flight."""

    def __init__(self, model, sizes, masked):
        self.model, self.sizes, self.masked = model, sizes, masked
        self.ids = [torch.zeros(sizes[-1], LENGTH, dtype=torch.int64).pin_memory() for _ in range(DEPTH)]
        self.masks = [torch.ones(sizes[-1], LENGTH, dtype=torch.int64).pin_memory() for _ in range(DEPTH)]
        hidden = nets.bert_config().hidden_size
        self.pooled = [torch.zeros(sizes[-1], hidden, dtype=torch.float16).pin_memory() for _ in range(DEPTH)]

    def size_for(self, rows):
        return next(size for size in self.sizes if size >= rows)

    def launch(self, slot, rows):
        """Queues copies and model; the event is done when the outputs are in pinned memory."""
        size = self.size_for(rows)
        torch.compiler.cudagraph_mark_step_begin()
        ids = self.ids[slot][:size].to("cuda", non_blocking=True)
        mask = {"attention_mask": self.masks[slot][:size].to("cuda", non_blocking=True)} if self.masked else {}
        pooled = self.model(input_ids=ids, **mask).pooler_output
        self.pooled[slot][:size].copy_(pooled, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return event


def percentiles(milliseconds):
    values = numpy.asarray(milliseconds)
    return {"p50": float(numpy.percentile(values, 50)), "p99": float(numpy.percentile(values, 99)), "mean": float(values.mean()), "count": len(values)}


def latency(engine, requests, runs, warm_up=50):
    times = []
    for i in range(warm_up + runs):
        started = time.perf_counter()
        engine.ids[0][0].copy_(requests[i % DISTINCT])
        engine.launch(0, 1).synchronize()
        engine.pooled[0][0].numpy().copy()
        times.append((time.perf_counter() - started) * 1e3)
    return percentiles(times[warm_up:])


def saturated(engine, size, seconds=0.7):
    """Requests per second of full batches one after the other, one of them ahead."""
    pending, done, started = collections.deque(), 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        pending.append(engine.launch(done // size % DEPTH, size))
        if len(pending) == DEPTH:
            pending.popleft().synchronize()
        done += size
    torch.cuda.synchronize()
    return done / (time.perf_counter() - started)


def offer(engine, requests, rate, seconds, max_batch, max_delay, seed=1):
    """Poisson arrivals at `rate` a second. Latency counts from the arrival that was planned."""
    random = numpy.random.default_rng(seed)
    arrivals = numpy.cumsum(random.exponential(1 / rate, int(rate * seconds)))
    latencies, batches = [], []
    answers = [None] * DISTINCT
    pending = collections.deque()
    arrived = taken = 0
    slot = 0
    clock = time.perf_counter
    started = clock()
    while len(latencies) < len(arrivals):
        now = clock() - started
        if now > seconds * 2 + 1:
            break
        arrived += int(numpy.searchsorted(arrivals[arrived:arrived + 4096], now, side="right"))
        waiting = arrived - taken
        ready = waiting >= max_batch or (not pending and waiting > 0 and now - arrivals[taken] >= max_delay)
        if ready and len(pending) < DEPTH:
            rows = min(waiting, max_batch)
            ids = engine.ids[slot]
            torch.stack([requests[i % DISTINCT] for i in range(taken, taken + rows)], out=ids[:rows])
            pending.append((engine.launch(slot, rows), taken, rows, slot))
            taken += rows
            slot = (slot + 1) % DEPTH
        elif pending and pending[0][0].query():
            _, first, rows, used = pending.popleft()
            pooled = engine.pooled[used].numpy()
            for row in range(rows):
                answers[(first + row) % DISTINCT] = pooled[row].copy()
            finished = clock() - started
            latencies.extend((finished - arrivals[first:first + rows]) * 1e3)
            batches.append(rows)
    torch.cuda.synchronize()
    elapsed = clock() - started
    return {
        "offered": rate, "served": len(latencies) / elapsed, "complete": len(latencies) == len(arrivals),
        "meanBatch": float(numpy.mean(batches)), **{key: value for key, value in percentiles(latencies).items()},
    }


def holds(trial):
    return trial["complete"] and trial["p99"] <= LIMIT_MS and trial["served"] >= 0.95 * trial["offered"]


def highest_rate(engine, requests, ceiling, seconds, policy, note, steps=6):
    """By halving between what holds and what does not."""
    low, high, best, trials = 0.0, ceiling * 1.1, None, []
    rate = ceiling * 0.9
    for _ in range(steps):
        trial = offer(engine, requests, rate, seconds, *policy)
        trials.append(trial)
        say(f"  {rate:.0f}/s: served {trial['served']:.0f}, P99 {trial['p99']:.1f} ms, batch {trial['meanBatch']:.1f}")
        if holds(trial):
            low, best = rate, trial
        else:
            high = rate
        rate = (low + high) / 2
        note({"best": best, "trials": trials})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--max-batch", type=int, default=128)
    parser.add_argument("--max-delay-ms", type=float, default=2.0)
    parser.add_argument("--sizes", default="1,32,128")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--modes", default="eager,compiled")
    parser.add_argument("--load", default="eager,compiled", help="modes whose highest rate is looked for")
    parser.add_argument("--no-mask", action="store_true", help="every token counts: no attention_mask is given")
    args = parser.parse_args()
    sizes = [int(size) for size in args.sizes.split(",")]
    policy = (args.max_batch, args.max_delay_ms / 1e3)
    report = {
        "torch": torch.__version__, "gpu": torch.cuda.get_device_name(), "model": "transformers BertModel, BERT-base shape, random weights",
        "dtype": "float16", "sequence": LENGTH, "maxBatch": args.max_batch, "maxDelayMs": args.max_delay_ms, "sizes": sizes,
        "masked": not args.no_mask,
    }
    import transformers

    report["transformers"] = transformers.__version__
    model = nets.hugging_face_bert(nets.bert_config()).to("cuda", torch.float16)
    generator = torch.Generator().manual_seed(5)
    requests = list(torch.randint(0, 30522, (DISTINCT, LENGTH), generator=generator))
    def write():
        with open(args.out, "w") as file:
            json.dump(report, file, indent=1)

    with torch.inference_mode():
        for mode in args.modes.split(","):
            try:
                run = torch.compile(model, mode="reduce-overhead", dynamic=False) if mode == "compiled" else model
                engine = Engine(run, sizes, not args.no_mask)
                figures = report[mode] = {"prepareSeconds": {}, "saturatedPerSecond": {}}
                for size in sizes:
                    started = time.perf_counter()
                    for _ in range(4):
                        engine.launch(0, size).synchronize()
                    figures["prepareSeconds"][size] = time.perf_counter() - started
                figures["latencyMs"] = latency(engine, requests, args.runs)
                say(f"{mode}: batch 1 {figures['latencyMs']}, prepared in {figures['prepareSeconds']}")
                for size in sizes:
                    figures["saturatedPerSecond"][size] = saturated(engine, size)
                write()
                say(f"{mode}: {figures['saturatedPerSecond']}")
                if mode not in args.load.split(","):
                    continue
                ceiling = figures["saturatedPerSecond"][engine.size_for(args.max_batch)]
                highest_rate(engine, requests, ceiling, args.seconds, policy, lambda load: (figures.update(load=load), write()))
            except Exception as error:
                report.setdefault(mode, {})["error"] = repr(error)[:2000]
                say(f"{mode}: {error!r}")
            finally:
                write()


if __name__ == "__main__":
    main()
