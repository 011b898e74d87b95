"""A real bundle in a few kilobytes: two nested layers, three rungs and a dense top, written with onnx alone.

    x [batch, 16] --(first: 16 -> 24)--> relu --(second: 24 -> 8)--> y [batch, 8]

The factors lie in weights.bin once, rank-major, and every rung's graph refers to a prefix of them, as in a real export.
The dense weights are NOT the product of the factors, so that an answer of one rank is never mistaken for another's.
`write_text_bundle` puts an embedding table and a word tokenizer in front; `write_classifier_bundle` besides takes the
first token's vector as the logits of eight labels.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nsn_edge.bundle import Artifact, Bundle, Manifest, TaskSpec, TensorSpec
from nsn_edge.ladder import NestedLayer, RankLadder, uniform_ladder

RUNGS = (2, 5, 8)
TOP = 16
ALL_RUNGS = (*RUNGS, TOP)
WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "the",
    "a",
    "loop",
    "exits",
    "file",
    "opens",
    "break",
    "ends",
    "with",
    "not",
)
_SIZES = (("first", 16, 24), ("second", 24, 8))


@dataclass(frozen=True)
class TinyModel:
    """The same model in numpy: what every graph is compared with."""

    ladder: RankLadder
    A: dict[str, np.ndarray]
    """By layer: float32 `[R, d_in]`."""
    Bt: dict[str, np.ndarray]
    """By layer: float32 `[R, d_out]`."""
    dense: dict[str, np.ndarray]
    """By layer: float32 `[d_in, d_out]`."""
    table: np.ndarray
    """Word vectors, float32 `[words, 16]`."""

    @classmethod
    def random(cls, seed: int = 0) -> TinyModel:
        """Random weights, a ladder with `RUNGS` and the dense top."""
        draw = np.random.default_rng(seed)
        ladder = uniform_ladder([(name, d_in, d_out, min(d_in, d_out)) for name, d_in, d_out in _SIZES], align=1)

        def normal(*shape: int) -> np.ndarray:
            return draw.standard_normal(shape).astype(np.float32)

        return cls(
            ladder=ladder.with_rungs(RUNGS, dense_top=True),
            A={name: normal(min(d_in, d_out), d_in) for name, d_in, d_out in _SIZES},
            Bt={name: normal(min(d_in, d_out), d_out) for name, d_in, d_out in _SIZES},
            dense={name: normal(d_in, d_out) for name, d_in, d_out in _SIZES},
            table=normal(len(WORDS), 16),
        )

    def __call__(self, x: np.ndarray, rank: int, *, dense: bool | None = None) -> np.ndarray:
        """float32 `[..., 16]` -> `[..., 8]` at a rank; the dense weights at the top one unless told otherwise."""
        if dense is None:
            dense = rank == TOP
        for name, *_ in _SIZES:
            r = self.ladder.layer_ranks(rank)[name]
            x = x @ self.dense[name] if dense else x @ self.A[name][:r].T @ self.Bt[name][:r]
            x = np.maximum(x, 0) if name == "first" else x
        return x


def write_tiny_bundle(path: Path, seed: int = 0) -> TinyModel:
    """Write a bundle of a plain model (`custom`): `x [batch, 16] -> y [batch, 8]`; forms static, sliced, masked."""
    model = TinyModel.random(seed)
    _Writer(path, model, text=False).write(TaskSpec("custom"), {})
    return model


def write_text_bundle(path: Path, seed: int = 0, *, pooling: str | None = "mean", max_length: int = 8) -> TinyModel:
    """Write a bundle of a sentence encoder: `input_ids, attention_mask -> last_hidden_state [batch, sequence, 8]`."""
    model = TinyModel.random(seed)
    task = TaskSpec("feature-extraction", pooling=pooling, normalize=True, max_length=max_length)
    _Writer(path, model, text=True).write(task, {"tokenizer.json": _tokenizer()})
    return model


LABELS = ("north", "east", "south", "west", "up", "down", "in", "out")


def write_classifier_bundle(path: Path, seed: int = 0, *, max_length: int = 8) -> TinyModel:
    """Write a bundle of a text classifier: `input_ids, attention_mask -> logits [batch, 8]`, which are the vector of
    the token after `[CLS]`, so that they depend on the text."""
    model = TinyModel.random(seed)
    config = {"id2label": {str(number): name for number, name in enumerate(LABELS)}}
    assets = {"tokenizer.json": _tokenizer(), "config.json": json.dumps(config).encode()}
    _Writer(path, model, text=True, logits=True).write(TaskSpec("text-classification", max_length=max_length), assets)
    return model


def sign(path: Path, **changes: object) -> None:
    """Make the manifest true again after a file was changed on purpose: sizes and hashes of what is there now."""
    data = json.loads((path / "manifest.json").read_text())
    for artifact in data["artifacts"]:
        file = (path / artifact["path"]).read_bytes()
        artifact.update(sha256=hashlib.sha256(file).hexdigest(), size_bytes=len(file))
    (path / "manifest.json").write_text(json.dumps({**data, **changes}))


_Value = tuple[str, str, tuple[int | str, ...]]


class _Writer:
    def __init__(self, path: Path, model: TinyModel, text: bool, logits: bool = False) -> None:
        self.path, self.model, self.text, self.logits = path, model, text, logits
        self.offsets: dict[str, int] = {}
        self.data = b""
        path.mkdir(parents=True, exist_ok=True)

    def write(self, task: TaskSpec, assets: dict[str, bytes]) -> None:
        for name, *_ in _SIZES:
            for prefix, tensors in (("A", self.model.A), ("Bt", self.model.Bt), ("W", self.model.dense)):
                self.offsets[f"{prefix}.{name}"] = len(self.data)
                self.data += tensors[name].tobytes()
        self.offsets["table"] = len(self.data)
        self.data += self.model.table.tobytes()
        inputs, outputs = self._values()
        artifacts = [self._file("weights.bin", self.data, kind="weights")]
        graphs = [(f"rank-{rank:03}.onnx", "static", rank) for rank in ALL_RUNGS]
        graphs += [(f"{form}.onnx", form, None) for form in ("sliced", "masked")]
        for name, form, rank in graphs:
            graph = _Graph(self, form, rank)
            content = graph.build(name, inputs, outputs)
            entry = {"form": form, "rank": rank, "precision": "fp32", "weight_bytes": graph.weight_bytes}
            artifacts.append(self._file(name, content, kind="graph", **entry))
        artifacts += [self._file(name, content, kind="asset") for name, content in assets.items()]
        manifest = Manifest(
            model="tiny",
            architecture="TinyModel",
            task=task,
            ladder=self.model.ladder,
            inputs=tuple(TensorSpec(*value) for value in inputs),
            outputs=tuple(TensorSpec(*value) for value in outputs),
            artifacts=tuple(artifacts),
            created_by={"tests": "1"},
        )
        Bundle.write_manifest(self.path, manifest)

    def _values(self) -> tuple[list[_Value], list[_Value]]:
        if not self.text:
            return [("x", "float32", ("batch_size", 16))], [("y", "float32", ("batch_size", 8))]
        tokens = ("batch_size", "sequence_length")
        inputs: list[_Value] = [(name, "int64", tokens) for name in ("input_ids", "attention_mask")]
        if self.logits:
            return inputs, [("logits", "float32", ("batch_size", 8))]
        return inputs, [("last_hidden_state", "float32", (*tokens, 8))]

    def _file(self, name: str, content: bytes, **entry: object) -> Artifact:
        (self.path / name).write_bytes(content)
        return Artifact(path=name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content), **entry)


class _Graph:
    """One graph of the bundle: a rung's (`static`), or the one with the rank as an input."""

    def __init__(self, writer: _Writer, form: str, rank: int | None) -> None:
        self.model, self.offsets, self.text = writer.model, writer.offsets, writer.text
        self.logits = writer.logits
        self.form, self.rank = form, rank
        self.weight_bytes = 0
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []

    def build(self, name: str, inputs: list[_Value], outputs: list[_Value]) -> bytes:
        x = self._embed() if self.text else "x"
        for layer in self.model.ladder.layers:
            x = self._static_layer(layer, x) if self.rank is not None else self._dynamic_layer(layer, x)
            x = self._node("Relu", [x], f"{layer.name}.relu") if layer.name == "first" else x
        if self.logits:
            self._node("Gather", [x, self._constant("word", np.array(1))], "of.word", axis=1)
            x = "of.word"
        self._node("Identity", [x], outputs[0][0])
        values = [*inputs] if self.rank is not None else [*inputs, ("rank", "int64", ())]
        model = helper.make_model(
            helper.make_graph(self.nodes, name, _infos(values), _infos(outputs), self.weights),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=9,
        )
        return model.SerializeToString()

    def _embed(self) -> str:
        self._node("Gather", [self._weight("table", self.model.table.shape), "input_ids"], "vectors")
        # The mask must be an input of the graph and may not change the tokens' vectors: 0 * mask is added.
        mask = self._node("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
        self._node("Mul", [mask, self._node("Sub", [mask, mask], "zero")], "nothing")
        column = self._node("Unsqueeze", ["nothing", self._constant("last", [-1])], "column")
        return self._node("Add", ["vectors", column], "x")

    def _static_layer(self, layer: NestedLayer, x: str) -> str:
        assert self.rank is not None
        key, r = layer.name, layer.curve(self.rank)
        if self.model.ladder.rung(self.rank).dense:
            return self._node("MatMul", [x, self._weight(f"W.{key}", (layer.d_in, layer.d_out))], f"{key}.out")
        at = self._node("Transpose", [self._weight(f"A.{key}", (r, layer.d_in))], f"{key}.At", perm=[1, 0])
        hidden = self._node("MatMul", [x, at], f"{key}.hidden")
        return self._node("MatMul", [hidden, self._weight(f"Bt.{key}", (r, layer.d_out))], f"{key}.out")

    def _dynamic_layer(self, layer: NestedLayer, x: str) -> str:
        key, full = layer.name, layer.curve.full_rank
        a, b = self._weight(f"A.{key}", (full, layer.d_in)), self._weight(f"Bt.{key}", (full, layer.d_out))
        index = self._node("Sub", ["rank", self._constant(f"{key}.one", np.array(1))], f"{key}.index")
        layer_rank = self._node("Gather", [self._constant(f"{key}.ranks", layer.curve.table()), index], f"{key}.rank")
        if self.form == "sliced":
            zero = self._constant(f"{key}.zero", [0])
            end = self._node("Unsqueeze", [layer_rank, zero], f"{key}.end")
            a = self._node("Slice", [a, zero, end, zero], f"{key}.A")
            b = self._node("Slice", [b, zero, end, zero], f"{key}.B")
        at = self._node("Transpose", [a], f"{key}.At", perm=[1, 0])
        hidden = self._node("MatMul", [x, at], f"{key}.hidden")
        if self.form == "masked":
            below = self._node("Less", [self._constant(f"{key}.range", np.arange(full)), layer_rank], f"{key}.below")
            keep = self._node("Cast", [below], f"{key}.keep", to=TensorProto.FLOAT)
            hidden = self._node("Mul", [hidden, keep], f"{key}.kept")
        return self._node("MatMul", [hidden, b], f"{key}.out")

    def _node(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def _weight(self, name: str, shape: tuple[int, ...]) -> str:
        """A prefix of a tensor in weights.bin."""
        proto = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        proto.data_location = TensorProto.EXTERNAL
        length = 4 * int(np.prod(shape))
        for key, value in (("location", "weights.bin"), ("offset", self.offsets[name]), ("length", length)):
            proto.external_data.add(key=key, value=str(value))
        self.weights.append(proto)
        self.weight_bytes += length
        return name

    def _constant(self, name: str, values: list[int] | np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name


def _infos(values: list[_Value]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
        for name, dtype, shape in values
    ]


def _tokenizer() -> bytes:
    """A word-level tokenizer that brackets a text with [CLS] and [SEP]; it carries a fixed padding and a truncation,
    as real ones do, which the runtime has to override."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=32, pad_id=0, pad_token="[PAD]")
    tokenizer.enable_truncation(max_length=32)
    return tokenizer.to_str().encode()
