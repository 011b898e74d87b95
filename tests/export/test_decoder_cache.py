"""A decoder's graph with its cache: token by token equals all at once, padding counts for nothing, a foreign cache is
refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from families import DECODERS, VOCABULARY, family_checkpoint, left_padded

from nsn_edge.bundle import Bundle
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.errors import EngineError, UsageError
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.export.inputs import text_inputs
from nsn_edge.export.reference import Reference
from nsn_edge.export.verify import verify_bundle
from nsn_edge.runtimes.engines import LoadedGraph, OnnxRuntimeEngine

Array = np.ndarray
RANK = 9
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Checkpoint]:
    checkpoint = family_checkpoint(request.param)
    config = ExportConfig(fractions=(), ranks=(RANK,), forms=("static",))
    return export_bundle(checkpoint, tmp_path_factory.mktemp(request.param) / "bundle", config), checkpoint


@pytest.fixture
def graph(decoder: tuple[Bundle, Checkpoint]) -> Iterator[LoadedGraph]:
    bundle, _ = decoder
    loaded = OnnxRuntimeEngine(threads=1).load(bundle.file(bundle.graph(RANK)))
    yield loaded
    loaded.close()


def feeds(graph: LoadedGraph, ids: Array, mask: Array, cache: dict[str, Array]) -> dict[str, Array]:
    """Inputs for the last tokens `ids` of those that the mask covers."""
    batch, new = ids.shape
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -new:]
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **cache}
    for spec in graph.inputs:
        if spec.name.startswith("past_key_values.") and spec.name not in given:
            given[spec.name] = np.zeros((batch, spec.shape[1], 0, spec.shape[3]), np.float32)
    return {spec.name: np.ascontiguousarray(given[spec.name]) for spec in graph.inputs}


def step(graph: LoadedGraph, ids: Array, mask: Array, cache: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    outputs = graph.run(feeds(graph, ids, mask, cache))
    return outputs.pop("logits"), {name.replace("present", "past_key_values"): x for name, x in outputs.items()}


@pytest.mark.parametrize(("batch", "length", "prompt"), [(1, 30, 1), (3, 21, 9), (4, 12, 11)])
def test_token_by_token_equals_all_at_once(graph: LoadedGraph, batch: int, length: int, prompt: int) -> None:
    tokens = left_padded(batch, length)
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    wanted, whole_cache = step(graph, ids, mask, {})
    logits, cache = step(graph, ids[:, :prompt], mask[:, :prompt], {})
    found = [logits]
    for end in range(prompt + 1, length + 1):
        logits, cache = step(graph, ids[:, end - 1 : end], mask[:, :end], cache)
        found.append(logits)
    real = mask.astype(bool)
    np.testing.assert_allclose(np.concatenate(found, axis=1)[real], wanted[real], **CLOSE)
    for name, x in cache.items():
        np.testing.assert_allclose(x.swapaxes(1, 2)[real], whole_cache[name].swapaxes(1, 2)[real], **CLOSE)


def test_padding_on_the_left_changes_nothing(graph: LoadedGraph) -> None:
    tokens = left_padded(4, 14)
    together, _ = step(graph, tokens["input_ids"], tokens["attention_mask"], {})
    for row, start in enumerate((0, 2, 4, 6)):
        alone = tokens["input_ids"][row : row + 1, start:]
        logits, _ = step(graph, alone, np.ones_like(alone), {})
        np.testing.assert_allclose(together[row : row + 1, start:], logits, **CLOSE)


def test_what_stands_in_the_padding_does_not_matter(graph: LoadedGraph) -> None:
    tokens = left_padded(3, 10)
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    one, _ = step(graph, ids, mask, {})
    other, _ = step(graph, np.where(mask, ids, (ids + 7) % VOCABULARY), mask, {})
    real = mask.astype(bool)
    np.testing.assert_allclose(other[real], one[real], **CLOSE)


Spoil = Callable[[dict[str, Array]], None]


def other_heads(inputs: dict[str, Array]) -> None:
    inputs["past_key_values.1.value"] = np.zeros((2, 7, 4, 8), np.float32)


def other_head_size(inputs: dict[str, Array]) -> None:
    inputs["past_key_values.0.key"] = inputs["past_key_values.0.key"][..., :5]


def other_batch(inputs: dict[str, Array]) -> None:
    inputs["past_key_values.0.key"] = inputs["past_key_values.0.key"][:1]


def other_length(inputs: dict[str, Array]) -> None:
    inputs["past_key_values.0.key"] = inputs["past_key_values.0.key"][:, :, :3]


def mask_of_the_new_tokens_alone(inputs: dict[str, Array]) -> None:
    inputs["attention_mask"] = inputs["attention_mask"][:, -1:]


def half_precision(inputs: dict[str, Array]) -> None:
    inputs["past_key_values.0.key"] = inputs["past_key_values.0.key"].astype(np.float16)


def fewer_layers(inputs: dict[str, Array]) -> None:
    del inputs["past_key_values.1.key"]


def more_layers(inputs: dict[str, Array]) -> None:
    inputs["past_key_values.2.key"] = inputs["past_key_values.1.key"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (other_heads, r"past_key_values\.1\.value"),
        (other_head_size, r"past_key_values\.0\.key"),
        (other_batch, r"past_key_values\.0\.key.* with batch_size 2"),
        (other_length, r"past_key_values\.0\.value.* with batch_size 2, past_sequence_length 3"),
        (mask_of_the_new_tokens_alone, r"past_sequence_length \+ sequence_length is 1 .* make it 4 \+ 1"),
        (half_precision, r"past_key_values\.0\.key.*float"),
        (fewer_layers, r"past_key_values\.1\.key"),
        (more_layers, r"past_key_values\.2\.key"),
    ],
)
@pytest.mark.parametrize("decoder", ["llama"], indirect=True)
def test_the_cache_of_another_model_is_refused_by_name(graph: LoadedGraph, spoil: Spoil, words: str) -> None:
    tokens = left_padded(2, 5)
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    _, cache = step(graph, ids[:, :4], mask[:, :4], {})
    inputs = feeds(graph, ids[:, 4:], mask, cache)
    spoil(inputs)
    with pytest.raises((EngineError, UsageError), match=words) as caught:
        graph.run(inputs)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("decoder", ["llama"], indirect=True)
def test_verification_reads_the_cache_too(decoder: tuple[Bundle, Checkpoint]) -> None:
    """A fault that shows only once something is cached: keys of the last layer, which the first logits do not use
    differently from torch's."""
    bundle, checkpoint = decoder
    names = [spec.name for spec in bundle.manifest.inputs]
    cases = Reference(checkpoint.model, names, [left_padded(3, 9)]).at(RANK, dense=False)
    assert [case.feeds["past_key_values.0.key"].shape[2] for case in cases] == [0, 4, 8]
    assert [case.feeds["input_ids"].shape for case in cases] == [(3, 9), (3, 5), (3, 1)]
    assert [case.feeds["position_ids"][0].tolist() for case in cases] == [list(range(9)), list(range(4, 9)), [8]]
    assert {"logits", "present.0.key", "present.1.value"} <= set(cases[0].wanted)
    report = verify_bundle(bundle, checkpoint, [left_padded(3, 9), left_padded(1, 1)])
    assert report.passed
    layer = checkpoint.model.model.layers[1].self_attn.v_proj
    with torch.no_grad():
        layer.A.mul_(1.01)
        try:
            failed = verify_bundle(bundle, checkpoint, [left_padded(3, 9)])
        finally:
            layer.A.div_(1.01)
    assert not failed.passed


class Spaces:
    """A tokenizer without a padding token: one token per word."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}


def test_texts_become_batches_padded_on_the_left_and_cut_to_different_lengths() -> None:
    names = ["input_ids", "attention_mask", "position_ids", "past_key_values.0.key"]
    one, three = text_inputs(Spaces(), ["a bb " * 40] * 4, names, max_length=10)
    assert set(one) == {"input_ids", "attention_mask"}
    assert one["input_ids"].shape == (1, 10)
    assert three["attention_mask"].sum(axis=1).tolist() == [10, 7, 4]
    assert three["attention_mask"][:, -1].tolist() == [1, 1, 1]
    with pytest.raises(UsageError, match="4 texts or more"):
        text_inputs(Spaces(), ["a"], names, None)
    with pytest.raises(UsageError, match="without a token"):
        text_inputs(Spaces(), ["a", "b", " ", "c"], names, None)
