"""Text to embeddings: pooling and order against numpy, and bundles that cannot do it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import ALL_RUNGS, TOP, WORDS, TinyModel, sign, write_text_bundle

from nsn_edge.errors import BundleError, MissingDependencyError, NsnEdgeError, UsageError
from nsn_edge.runtimes.session import EdgeSession
from nsn_edge.runtimes.text import TextEmbedder

TextBundle = tuple[Path, TinyModel]
TEXTS = ["The loop ends", "a file", "break", "the file opens with a loop and then it breaks the loop"]


def reference(model: TinyModel, text: str, rank: int, *, pooling: str = "mean", max_length: int = 8) -> np.ndarray:
    """The embedding by hand, one text at a time, so without padding."""
    ids = [WORDS.index(word) if word in WORDS else 1 for word in text.lower().split()]
    tokens = model(model.table[[2, *ids[: max_length - 2], 3]], rank)
    vector = tokens.mean(axis=0) if pooling == "mean" else tokens[0]
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_embeddings_are_those_of_each_text_alone(tmp_path: Path, pooling: str, batch_size: int) -> None:
    model = write_text_bundle(tmp_path / "bundle", pooling=pooling)
    with EdgeSession.open(tmp_path / "bundle") as session:
        embedder = TextEmbedder(session)
        for rank in ALL_RUNGS:
            embeddings = embedder.embed(TEXTS, rank=rank, batch_size=batch_size)
            assert embeddings.dtype == np.float32
            expected = [reference(model, text, rank, pooling=pooling) for text in TEXTS]
            np.testing.assert_allclose(embeddings, expected, rtol=1e-3, atol=1e-4)


def test_one_text_says_which_rank_answered(text_bundle: TextBundle) -> None:
    path, model = text_bundle
    with EdgeSession.open(path) as session:
        embedder = TextEmbedder(session)
        session.switch(5).result()
        answer = embedder.embed_one("the loop")
        assert answer.rank == 5
        np.testing.assert_allclose(answer.vector, reference(model, "the loop", 5), rtol=1e-3, atol=1e-4)
        assert embedder.embed_one("the loop", rank=TOP).rank == TOP


def test_texts_are_cut_and_padded_by_the_task_not_by_the_file(text_bundle: TextBundle) -> None:
    with EdgeSession.open(text_bundle[0]) as session:
        embedder = TextEmbedder(session)
        assert embedder.tokenize(["a loop", "break"])["input_ids"].tolist() == [[2, 5, 6, 3], [2, 10, 3, 0]]
        long = embedder.tokenize(["the " * 50])
        assert long["input_ids"].shape == (1, 8)
        assert set(long) == {"input_ids", "attention_mask"}, "only what the graph takes"
        assert long["attention_mask"].dtype == np.int64


def test_progress_is_told(text_bundle: TextBundle) -> None:
    seen: list[tuple[str, int, int]] = []
    with EdgeSession.open(text_bundle[0]) as session:
        TextEmbedder(session).embed(TEXTS, batch_size=3, progress=lambda *args: seen.append(args))
    assert seen == [("embed", 3, 4), ("embed", 4, 4)]


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ([], {}, "nothing to embed"),
        ("one string", {}, "give a list"),
        ([""], {"batch_size": 0}, "a batch holds 1 text or more, not 0"),
        (["fine", 3], {}, "a text to embed is a string, not 3"),
        (["fine", None], {}, "a text to embed is a string, not None"),
        (["fine", ""], {"rank": 99}, "rank 99 is outside"),
    ],
)
def test_what_cannot_be_embedded(text_bundle: TextBundle, texts: Any, settings: dict[str, Any], message: str) -> None:
    with EdgeSession.open(text_bundle[0]) as session, pytest.raises(UsageError, match=message):
        TextEmbedder(session).embed(texts, **settings)


def test_an_empty_text_is_a_text(text_bundle: TextBundle) -> None:
    path, model = text_bundle
    with EdgeSession.open(path) as session:
        vector = TextEmbedder(session).embed_one("").vector
    np.testing.assert_allclose(vector, reference(model, "", TOP), rtol=1e-3, atol=1e-4)


def spec(name: str, dtype: str = "int64", shape: tuple[object, ...] = ("b", "s")) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


TASK = {"name": "feature-extraction", "pooling": "mean", "normalize": True, "max_length": 8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {**TASK, "name": "text-classification"}}, "a bundle for text-classification, not for feature-extr"),
        ({"inputs": [spec("input_ids"), spec("pixels")]}, "takes pixels, which no tokenizer gives"),
        ({"inputs": [spec("input_ids")]}, "wants mean pooling, but its model takes no attention_mask"),
        ({"task": {**TASK, "pooling": None}}, r"needs an output of 2 dimensions; it has last_hidden_state"),
        ({"outputs": [spec("y", "float32")]}, r"pooling mean needs an output of 3 dimensions; it has y \['b', 's'\]"),
    ],
)
def test_bundles_that_do_not_embed_text(text_bundle: TextBundle, changes: dict[str, Any], message: str) -> None:
    path, _ = text_bundle
    sign(path, **changes)
    with EdgeSession.open(path) as session, pytest.raises(UsageError, match=message):
        TextEmbedder(session)


def test_a_bundle_without_a_tokenizer(tiny_bundle: TextBundle) -> None:
    path, _ = tiny_bundle
    sign(path, task=TASK, inputs=[spec("input_ids"), spec("attention_mask")], outputs=[spec("y", "float32", (1, 2, 3))])
    with EdgeSession.open(path) as session, pytest.raises(BundleError, match=r"has no tokenizer\.json"):
        TextEmbedder(session)


def test_a_tokenizer_that_is_none(text_bundle: TextBundle) -> None:
    path, _ = text_bundle
    (path / "tokenizer.json").write_text('{"version": "9"}')
    sign(path)
    with EdgeSession.open(path) as session, pytest.raises(BundleError, match=r"tokenizer\.json in .* is not readable"):
        TextEmbedder(session)


def test_without_the_package_the_pip_line_is_given(text_bundle: TextBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with EdgeSession.open(text_bundle[0]) as session, pytest.raises(MissingDependencyError, match="pip install"):
        TextEmbedder(session)


def test_a_model_that_gives_one_vector_per_text_is_not_pooled(text_bundle: TextBundle) -> None:
    from onnx import TensorProto, helper

    path, _ = text_bundle
    tokens = ["batch_size", "sequence_length"]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, tokens) for n in ("input_ids", "attention_mask")]
    output = helper.make_tensor_value_info("vector", TensorProto.FLOAT, tokens)
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["kept"]),
        helper.make_node("Cast", ["kept"], ["vector"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(nodes, "g", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (path / "rank-016.onnx").write_bytes(model.SerializeToString())
    sign(path, task={**TASK, "pooling": None, "normalize": False}, outputs=[spec("vector", "float32")])
    with EdgeSession.open(path) as session:
        assert TextEmbedder(session).embed(["a loop"]).tolist() == [[2.0, 5.0, 6.0, 3.0]]


def test_errors_are_one_line(text_bundle: TextBundle) -> None:
    path, _ = text_bundle
    (path / "tokenizer.json").write_text("{")
    sign(path)
    with EdgeSession.open(path) as session, pytest.raises(NsnEdgeError) as caught:
        TextEmbedder(session)
    assert "\n" not in str(caught.value)
