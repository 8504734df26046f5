"""
Exports the networks to ONNX, float32 with a dynamic batch, and runs each on onnxruntime on inputs of its own. Writes to DIR: NAME.onnx,
NAME.bin with the tensors of all cases, NAME.json that describes both, and torch's own outputs as a check on the export.

    python3 export.py DIR [--only mlp,resnet,select,bert,bert_pooled] [--bert-layers 12]
"""

import argparse
import json
import os
import time

import numpy
import torch

import nets


class Cases:
    """Tensors of inputs and outputs in one file."""

    def __init__(self, folder, name):
        self.path = os.path.join(folder, name)
        self.file = open(self.path + ".bin", "wb")
        self.cases = []

    def tensor(self, array):
        array = numpy.ascontiguousarray(array)
        self.file.write(b"\0" * (-self.file.tell() % 16))
        place = {"dtype": str(array.dtype), "shape": list(array.shape), "offset": self.file.tell()}
        self.file.write(array.tobytes())
        return place

    def add(self, inputs, outputs):
        self.cases.append({
            "inputs": {name: self.tensor(value) for name, value in inputs.items()},
            "outputs": {name: self.tensor(value) for name, value in outputs.items()},
        })

    def close(self, **facts):
        self.file.close()
        with open(self.path + ".json", "w") as file:
            json.dump({**facts, "cases": self.cases}, file, indent=1)


def tokens(batch, length, ragged, seed):
    random = numpy.random.default_rng(seed)
    mask = numpy.ones((batch, length), numpy.int64)
    if ragged:
        for row in range(1, batch):
            mask[row, random.integers(1, length):] = 0
    return {"input_ids": random.integers(0, 30522, (batch, length)), "attention_mask": mask}


def floats(name, *shape, seed):
    return {name: numpy.random.default_rng(seed).standard_normal(shape, numpy.float32)}


def decided(rows, seed, margin=0.05):
    """Inputs of `select` whose scores are clear, so that less precise arithmetic selects the same rows."""
    model = nets.Select()
    x = torch.from_numpy(floats("x", 4 * rows, 32, seed=seed)["x"])
    with torch.inference_mode():
        scores = model.score(torch.tanh(model.embed(x))).squeeze(1)
    return {"x": x[scores.abs() > margin][:rows].numpy()}


def networks(layers):
    """name -> (what makes the network, inputs of the cases, names of its outputs, dynamic axes)"""
    def bert(hidden_states):
        return nets.Bert(nets.hugging_face_bert(nets.bert_config(layers)), hidden_states).eval()

    length = nets.BERT_SEQUENCE
    text = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}
    texts = [tokens(1, length, False, 1), tokens(5, length, True, 2), tokens(8, 37, True, 3)]
    return {
        "mlp": (nets.mlp, [floats("x", b, 256, seed=b) for b in (1, 7, 64)], ["y"], {"x": {0: "batch"}, "y": {0: "batch"}}),
        "resnet": (
            nets.resnet, [floats("image", b, 3, nets.IMAGE, nets.IMAGE, seed=10 + b) for b in (1, 3, 8)], ["logits"],
            {"image": {0: "batch"}, "logits": {0: "batch"}},
        ),
        "select": (
            nets.Select, [decided(b, seed=20 + b) for b in (1, 16, 250)], ["features", "rows"],
            {"x": {0: "batch"}, "features": {0: "selected"}, "rows": {0: "selected"}},
        ),
        "bert": (
            lambda: bert(True), texts, ["last_hidden_state", "pooler_output"],
            {**text, "last_hidden_state": {0: "batch", 1: "sequence"}, "pooler_output": {0: "batch"}},
        ),
        "bert_pooled": (lambda: bert(False), texts, ["pooler_output"], {**text, "pooler_output": {0: "batch"}}),
    }


def export(folder, name, make, cases, outputs, axes):
    import onnxruntime

    path = os.path.join(folder, name + ".onnx")
    model = make()
    sample = tuple(torch.from_numpy(value) for value in cases[-1].values())
    started = time.perf_counter()
    with torch.inference_mode():
        # The exporter that traces: its graphs are plain ONNX operators.
        torch.onnx.export(
            model, sample, path, input_names=list(cases[0]), output_names=outputs, dynamic_axes=axes, opset_version=17, dynamo=False,
        )
    seconds = time.perf_counter() - started
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    store = Cases(folder, name)
    largest = 0.0
    for inputs in cases:
        expected = session.run(outputs, inputs)
        store.add(inputs, dict(zip(outputs, expected)))
        with torch.inference_mode():
            ours = model(*(torch.from_numpy(value) for value in inputs.values()))
        for theirs, mine in zip(expected, ours if isinstance(ours, tuple) else (ours,)):
            largest = max(largest, float(numpy.abs(theirs - mine.numpy()).max(initial=0)))
    store.close(
        model=name, onnxBytes=os.path.getsize(path), exportSeconds=round(seconds, 1), torch=torch.__version__,
        onnxruntime=onnxruntime.__version__, largestDifferenceToTorch=largest,
    )
    print(f"{name}: {os.path.getsize(path) / 1e6:.1f} MB in {seconds:.1f} s, onnxruntime against torch {largest:.2e}", flush=True)
    # Where the export is not the network that was meant, nothing that follows means anything.
    assert largest < 1e-3, f"{name}: onnxruntime and torch differ by {largest}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--only", default="mlp,resnet,select,bert,bert_pooled")
    parser.add_argument("--bert-layers", type=int, default=12)
    args = parser.parse_args()
    os.makedirs(args.folder, exist_ok=True)
    known = networks(args.bert_layers)
    for name in args.only.split(","):
        export(args.folder, name, *known[name])


if __name__ == "__main__":
    main()
