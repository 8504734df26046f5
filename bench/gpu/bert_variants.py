"""
BERT-base's shape (random weights) as ONNX in variants that compute the same and that TensorRT may fuse differently; bert_variants.mjs builds and
times them. What each variant is stands in models/bert_variants.json. Writes to DIR: NAME.onnx, and NAME.json / NAME.bin with inputs and
the outputs of the float32 graph on onnxruntime, in the form of models/export.py. Needs onnx, onnxruntime and numpy, not torch.

    python3 bert_variants.py DIR [--variants base,half] [--layers 12] [--check]

--check runs each variant on onnxruntime, too, and fails where it differs from the float32 graph.
"""

import argparse
import json
import os
import time

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = os.path.dirname(os.path.abspath(__file__))
HIDDEN, HEADS, VOCABULARY, POSITIONS, LENGTH = 768, 12, 30522, 512, 128
HEAD = HIDDEN // HEADS
EPSILON = 1e-12
DEFAULTS = {"type": "float32", "qkv": "split", "scale": "scores", "mask": "add", "gelu": "parts", "layout": "tokens", "length": "dynamic"}
CHOICES = {
    "type": ["float32", "float16"], "qkv": ["split", "fused"], "scale": ["scores", "query", "weights"], "mask": ["add", "select", "none"],
    "gelu": ["parts", "operator"], "layout": ["tokens", "rows"], "length": ["dynamic", "fixed"],
}
# Relative to the larger of 1 and the value.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2}


def weights(layers):
    """By name, float32; the same on every machine."""
    random = numpy.random.default_rng(0)

    def normal(*shape, std=0.02):
        return random.standard_normal(shape, numpy.float32) * numpy.float32(std)

    def norm(name):
        return {f"{name}.gain": 1 + normal(HIDDEN), f"{name}.bias": normal(HIDDEN)}

    def linear(name, inputs, outputs):
        return {f"{name}.weight": normal(inputs, outputs), f"{name}.bias": normal(outputs)}

    values = {"words": normal(VOCABULARY, HIDDEN), "positions": normal(POSITIONS, HIDDEN), "types": normal(2, HIDDEN), **norm("norm")}
    for layer in range(layers):
        for part in ("query", "key", "value", "output"):
            values |= linear(f"{layer}.{part}", HIDDEN, HIDDEN)
        values |= norm(f"{layer}.attention_norm")
        values |= linear(f"{layer}.up", HIDDEN, 4 * HIDDEN) | linear(f"{layer}.down", 4 * HIDDEN, HIDDEN)
        values |= norm(f"{layer}.norm")
    return values | linear("pooler", HIDDEN, HIDDEN)


class Graph:
    """Nodes and initializers of one variant."""

    def __init__(self, options, layers, values):
        for name, choice in options.items():
            assert choice in CHOICES[name], f"{name}: {choice}"
        self.options = {**DEFAULTS, **options}
        self.layers, self.values = layers, values
        self.dtype = numpy.dtype(self.options["type"])
        self.nodes, self.initializers, self.known = [], [], set()
        assert self.options["layout"] == "tokens" or self.options["length"] == "fixed", "rows need the length"

    def node(self, op, *inputs, name, outputs=1, **attributes):
        names = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=name, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, name, array):
        if name not in self.known:
            self.known.add(name)
            self.initializers.append(numpy_helper.from_array(numpy.asarray(array, order="C"), name))
        return name

    def real(self, name, value):
        return self.constant(name, numpy.asarray(value).astype(self.dtype))

    def integers(self, name, value):
        return self.constant(name, numpy.asarray(value, numpy.int64))

    def linear(self, x, name, weight=None, bias=None):
        weight = self.values[f"{name}.weight"] if weight is None else weight
        bias = self.values[f"{name}.bias"] if bias is None else bias
        product = self.node("MatMul", x, self.real(f"{name}.weight", weight), name=f"{name}/matmul")
        return self.node("Add", product, self.real(f"{name}.bias", bias), name=f"{name}/add")

    def norm(self, x, name):
        gain, bias = self.real(f"{name}.gain", self.values[f"{name}.gain"]), self.real(f"{name}.bias", self.values[f"{name}.bias"])
        return self.node("LayerNormalization", x, gain, bias, name=f"{name}/norm", axis=-1, epsilon=EPSILON)

    def gelu(self, x, name):
        if self.options["gelu"] == "operator":
            return self.node("Gelu", x, name=f"{name}/gelu", approximate="none")
        scaled = self.node("Div", x, self.real("sqrt_two", 2**0.5), name=f"{name}/gelu/div")
        error = self.node("Erf", scaled, name=f"{name}/gelu/erf")
        shifted = self.node("Add", error, self.real("one", 1), name=f"{name}/gelu/add")
        product = self.node("Mul", x, shifted, name=f"{name}/gelu/mul")
        return self.node("Mul", product, self.real("half", 0.5), name=f"{name}/gelu/half")

    def heads(self, x, name):
        shape = [-1, LENGTH, HEADS, HEAD] if self.options["layout"] == "rows" else [0, 0, HEADS, HEAD]
        split = self.node("Reshape", x, self.integers("heads_shape", shape), name=f"{name}/split")
        return self.node("Transpose", split, name=f"{name}/heads", perm=[0, 2, 1, 3])

    def projections(self, x, layer):
        """q, k, v as [batch, heads, length, head size]; the query is scaled where the variant scales it."""
        scale = numpy.float32(HEAD**-0.5)
        parts = [[self.values[f"{layer}.{part}.{kind}"] for part in ("query", "key", "value")] for kind in ("weight", "bias")]
        if self.options["scale"] == "weights":
            parts = [[query * scale, key, value] for query, key, value in parts]
        if self.options["qkv"] == "fused":
            joined = self.linear(x, f"{layer}.qkv", *(numpy.concatenate(kind, -1) for kind in parts))
            flat = self.node("Split", joined, self.integers("qkv_sizes", [HIDDEN] * 3), name=f"{layer}.qkv/parts", outputs=3, axis=-1)
        else:
            names = ("query", "key", "value")
            flat = [self.linear(x, f"{layer}.{name}", weight, bias) for name, weight, bias in zip(names, *parts)]
        q, k, v = (self.heads(part, f"{layer}.{name}") for part, name in zip(flat, "qkv"))
        if self.options["scale"] == "query":
            q = self.node("Mul", q, self.real("scale", scale), name=f"{layer}.q/scale")
        return q, k, v

    def attention(self, x, layer, mask):
        q, k, v = self.projections(x, layer)
        turned = self.node("Transpose", k, name=f"{layer}.k/turned", perm=[0, 1, 3, 2])
        scores = self.node("MatMul", q, turned, name=f"{layer}/scores")
        if self.options["scale"] == "scores":
            scores = self.node("Mul", scores, self.real("scale", HEAD**-0.5), name=f"{layer}/scale")
        if self.options["mask"] == "add":
            scores = self.node("Add", scores, mask, name=f"{layer}/mask")
        if self.options["mask"] == "select":
            scores = self.node("Where", mask, scores, self.real("masked", -1e4), name=f"{layer}/mask")
        shares = self.node("Softmax", scores, name=f"{layer}/softmax", axis=-1)
        attended = self.node("MatMul", shares, v, name=f"{layer}/attended")
        joined = self.node("Transpose", attended, name=f"{layer}/joined", perm=[0, 2, 1, 3])
        shape = [-1, HIDDEN] if self.options["layout"] == "rows" else [0, 0, HIDDEN]
        return self.node("Reshape", joined, self.integers("hidden_shape", shape), name=f"{layer}/hidden")

    def mask(self):
        """[batch, 1, 1, length]: what is added to the scores, or which of them count."""
        kind = self.options["mask"]
        if kind == "none":
            return None
        wide = self.node("Unsqueeze", "attention_mask", self.integers("mask_axes", [1, 2]), name="mask/wide")
        if kind == "select":
            return self.node("Cast", wide, name="mask/counts", to=TensorProto.BOOL)
        numbers = self.node("Cast", wide, name="mask/cast", to=helper.np_dtype_to_tensor_dtype(self.dtype))
        inverse = self.node("Sub", self.real("one", 1), numbers, name="mask/inverse")
        return self.node("Mul", inverse, self.real("masked", -1e4), name="mask/offset")

    def embeddings(self):
        words = self.node("Gather", self.real("words", self.values["words"]), "input_ids", name="words/gather")
        positions = self.values["positions"] + self.values["types"][0]
        if self.options["length"] == "fixed":
            places = self.real("places", positions[:LENGTH])
        else:
            shape = self.node("Shape", "input_ids", name="length/shape")
            length = self.node("Slice", shape, self.integers("axis_1", [1]), self.integers("axis_2", [2]), name="length")
            table = self.real("places", positions)
            places = self.node("Slice", table, self.integers("zero", [0]), length, self.integers("axis_0", [0]), name="places/slice")
        x = self.norm(self.node("Add", words, places, name="embedding"), "norm")
        return self.node("Reshape", x, self.integers("rows_shape", [-1, HIDDEN]), name="rows") if self.options["layout"] == "rows" else x

    def model(self, name):
        mask, x = self.mask(), self.embeddings()
        for layer in range(self.layers):
            attended = self.linear(self.attention(x, layer, mask), f"{layer}.output")
            x = self.norm(self.node("Add", x, attended, name=f"{layer}/attention_residual"), f"{layer}.attention_norm")
            up = self.gelu(self.linear(x, f"{layer}.up"), f"{layer}.up")
            x = self.norm(self.node("Add", x, self.linear(up, f"{layer}.down"), name=f"{layer}/residual"), f"{layer}.norm")
        if self.options["layout"] == "rows":
            x = self.node("Reshape", x, self.integers("tokens_shape", [-1, LENGTH, HIDDEN]), name="tokens")
        first = self.node("Gather", x, self.integers("first", 0), name="first_token", axis=1)
        self.nodes.append(helper.make_node("Tanh", [self.linear(first, "pooler")], ["pooler_output"], name="pooler/tanh"))
        length = LENGTH if self.options["length"] == "fixed" else "sequence"
        names = ["input_ids"] if mask is None else ["input_ids", "attention_mask"]
        inputs = [helper.make_tensor_value_info(each, TensorProto.INT64, ["batch", length]) for each in names]
        output = helper.make_tensor_value_info("pooler_output", helper.np_dtype_to_tensor_dtype(self.dtype), ["batch", HIDDEN])
        graph = helper.make_graph(self.nodes, name, inputs, [output], self.initializers)
        opset = 20 if self.options["gelu"] == "operator" else 17
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9, producer_name="node-tensorrt bench")


def run(path, inputs):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    return [session.run(None, {name: value for name, value in case.items() if name in names})[0] for case in inputs]


def texts():
    """Whole ones and ragged ones."""
    random = numpy.random.default_rng(1)
    cases = []
    for batch, ragged in ((4, False), (5, True)):
        mask = numpy.ones((batch, LENGTH), numpy.int64)
        for row in range(1, batch if ragged else 0):
            mask[row, random.integers(8, LENGTH):] = 0
        cases.append({"input_ids": random.integers(0, VOCABULARY, (batch, LENGTH)), "attention_mask": mask})
    return cases


def references(folder, layers, values):
    """Outputs of the float32 graph, kept for the variants to come."""
    path = os.path.join(folder, f"bert-references-{layers}.npz")
    cases = texts()
    if not os.path.exists(path):
        model = os.path.join(folder, f"bert-reference-{layers}.onnx")
        onnx.save(Graph({}, layers, values).model("reference"), model)
        numpy.savez(path, *run(model, cases))
        os.remove(model)
    with numpy.load(path) as stored:
        return cases, [stored[f"arr_{i}"] for i in range(len(cases))]


def distance(given, expected):
    assert given.shape == expected.shape, f"{given.shape}, not {expected.shape}"
    given = given.astype(numpy.float32)
    return float((numpy.abs(given - expected) / numpy.maximum(1, numpy.abs(expected))).max()) if numpy.isfinite(given).all() else float("inf")


def write_cases(folder, name, cases, outputs, **facts):
    described = []
    with open(os.path.join(folder, f"{name}.bin"), "wb") as file:

        def place(array):
            array = numpy.ascontiguousarray(array)
            file.write(b"\0" * (-file.tell() % 16))
            offset = file.tell()
            file.write(array.tobytes())
            return {"dtype": str(array.dtype), "shape": list(array.shape), "offset": offset}

        for inputs, output in zip(cases, outputs):
            described.append({"inputs": {key: place(value) for key, value in inputs.items()}, "outputs": {"pooler_output": place(output)}})
    with open(os.path.join(folder, f"{name}.json"), "w") as file:
        json.dump({"model": name, **facts, "cases": described}, file, indent=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--variants")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    with open(os.path.join(HERE, "models", "bert_variants.json")) as file:
        known = json.load(file)
    os.makedirs(args.folder, exist_ok=True)
    values = weights(args.layers)
    cases, expected = references(args.folder, args.layers, values)
    for name in args.variants.split(",") if args.variants else known:
        started = time.perf_counter()
        options = {**DEFAULTS, **known[name]["graph"]}
        masked = options["mask"] != "none"
        path = os.path.join(args.folder, f"bert-{name}.onnx")
        onnx.save(Graph(known[name]["graph"], args.layers, values).model(name), path)
        # Without a mask only whole texts mean the same.
        chosen = cases if masked else [{"input_ids": cases[0]["input_ids"]}]
        difference = None
        if args.check:
            onnx.checker.check_model(path)
            difference = max(distance(given, right) for given, right in zip(run(path, chosen), expected))
        write_cases(args.folder, f"bert-{name}", chosen, expected, graph=options, layers=args.layers, differenceToFloat32=difference)
        print(f"{name}: {os.path.getsize(path) / 1e6:.0f} MB in {time.perf_counter() - started:.1f} s, difference {difference}", flush=True)
        # A variant that computes something else means nothing.
        assert difference is None or difference <= TOLERANCE[options["type"]], f"{name}: {difference}"


if __name__ == "__main__":
    main()
