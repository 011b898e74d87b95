"""TensorRT engines where they are used: in sessions that switch and evict, and under the generation loop, whose cache
stays on the GPU while the rank changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from built_engines import Device, build_engines, pretend_device
from families import POSITIONS, family_checkpoint
from tensorrt_cases import TENSORRTS, TinyBundle, batch, engine_of
from tiny_bundle import ALL_RUNGS

from nsn_edge.bundle import Bundle
from nsn_edge.errors import EngineError, StaleEngineError
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.runtimes.engines import FaultyEngine, HeldArray, OnnxRuntimeEngine
from nsn_edge.runtimes.engines.tensorrt import DeviceTensor
from nsn_edge.runtimes.generation import Decoder, GenerationConfig, Generator
from nsn_edge.runtimes.generation.generator import left_padded
from nsn_edge.runtimes.session import EdgeSession

PROMPTS = [[5, 6, 7, 8, 9, 10], [3], [11, 12, 13]]


@pytest.fixture(scope="module")
def decoder_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    config = ExportConfig(fractions=(0.5, 0.25), forms=("static", "sliced"))
    bundle = export_bundle(family_checkpoint("llama"), tmp_path_factory.mktemp("decoder") / "bundle", config)
    for backend, version in TENSORRTS:
        build_engines(bundle.path, backend, version)
    return bundle


@pytest.fixture(params=TENSORRTS, ids="-".join)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Device:
    return pretend_device(monkeypatch, *request.param)


def test_a_session_switches_evicts_and_frees_everything(device: Device, tiny_bundle: TinyBundle) -> None:
    path, model = tiny_bundle
    engine = engine_of(device)
    build_engines(path, engine.library, device.library.__version__)
    budget_mb = sum(Bundle.open(path).graph(rank).weight_bytes or 0 for rank in (8, 16)) / 1e6
    with EdgeSession.open(path, engine=engine, memory_budget_mb=budget_mb) as session:
        for seed, rank in enumerate((16, 8, 2, 2, 5, 16, 16, 16, 8, 2)):
            session.switch(rank).result()
            answer = session.run({"x": batch(seed=seed)})
            assert answer.rank == rank
            np.testing.assert_allclose(answer.outputs["y"], model(batch(seed=seed), rank), rtol=1e-4, atol=1e-4)
        assert 1 < len(session.resident_ranks) < len(ALL_RUNGS)
    assert device.cuda.is_clean
    assert not device.library.alive


def test_one_engine_answers_at_every_rank_of_a_session(device: Device, tiny_bundle: TinyBundle) -> None:
    path, model = tiny_bundle
    engine = engine_of(device)
    build_engines(path, engine.library, device.library.__version__)
    with EdgeSession.open(path, engine=engine, form="sliced") as session:
        for seed, rank in enumerate((16, 3, 3, 3, 9, 1, 3)):
            answer = session.run({"x": batch(seed=seed)}, rank)
            np.testing.assert_allclose(answer.outputs["y"], model(batch(seed=seed), rank, dense=False), rtol=1e-4)
        assert device.library.order_of_death.count("engine") == 0
        del answer
    assert device.cuda.is_clean, "a session drops such a graph without closing it"
    assert not device.library.alive


def test_a_rung_that_was_not_built_leaves_the_session_where_it_is(device: Device, tiny_bundle: TinyBundle) -> None:
    path, model = tiny_bundle
    engine = engine_of(device)
    build_engines(path, engine.library, device.library.__version__)[5].unlink()
    with EdgeSession.open(path, engine=engine, rank=8, listener=lambda event: None) as session:
        with pytest.raises(StaleEngineError, match="nsn-edge build"):
            session.switch(5).result()
        answer = session.run({"x": batch()})
        assert answer.rank == 8
        np.testing.assert_allclose(answer.outputs["y"], model(batch(), 8), rtol=1e-4, atol=1e-4)
    assert device.cuda.is_clean


@pytest.mark.parametrize("form", ["static", "sliced"])
@pytest.mark.parametrize("through_numpy", [False, True])
def test_text_is_that_of_onnxruntime_while_the_rank_changes(
    device: Device, decoder_bundle: Bundle, form: str, through_numpy: bool
) -> None:
    low, middle, top = decoder_bundle.manifest.ladder.ranks
    plan = [top, low, low, middle, top, low, middle, middle, low, top]
    config = GenerationConfig(max_new_tokens=len(plan), eos_ids=())

    def text(engine: Any) -> list[list[int]]:
        with EdgeSession.open(decoder_bundle, engine=engine, form=form) as session:
            found = Generator(session).generate(PROMPTS, config, plan.__getitem__)
            assert [generation.ranks for generation in found] == [plan] * 3
            return [generation.tokens for generation in found]

    expected = text(OnnxRuntimeEngine())
    engine = engine_of(device)
    assert text(FaultyEngine(engine) if through_numpy else engine) == expected
    assert len({tuple(tokens) for tokens in expected}) == 3
    assert device.cuda.is_clean
    assert not device.library.alive


def test_the_cache_stays_on_the_gpu_while_tokens_are_written(device: Device, decoder_bundle: Bundle) -> None:
    low, _, top = decoder_bundle.manifest.ladder.ranks
    specs = decoder_bundle.manifest.inputs
    small = [spec for spec in specs if not spec.name.startswith("past_key_values.")]
    with EdgeSession.open(decoder_bundle, engine=engine_of(device)) as session:
        decoder = Decoder(session)
        tokens, mask, positions = left_padded(PROMPTS[:1])
        step = decoder.step(tokens, mask, positions, decoder.empty_cache(1), top)
        session.preload([low])[0].result()
        first = step.cache.tensors["past_key_values.1.value"]
        assert isinstance(first, DeviceTensor)
        address, before = first.data_ptr(), first.numpy().copy()
        device.cuda.calls.clear()
        for length, rank in zip((6, 7, 8), (low, top, low), strict=True):
            one = np.array([[7]])
            step = decoder.step(one, np.ones((1, length + 1), np.int64), one * 0 + length, step.cache, rank)
        copies = device.cuda.calls.count("cudaMemcpyAsync")
        assert copies == 3 * (len(small) + 1), "tokens, mask and positions go there, logits come back, nothing else"
        assert (step.cache.tensors["past_key_values.1.value"].numpy()[:, :, :6] == before).all()
        assert first.data_ptr() == address
        assert (first.numpy() == before).all(), "a step leaves the cache it was given as it was"
    del step, first
    assert device.cuda.is_clean


def test_a_cache_outlives_its_session_and_serves_another_engine(device: Device, decoder_bundle: Bundle) -> None:
    tokens, mask, positions = left_padded(PROMPTS[:1])
    one = (np.array([[7]]), np.ones((1, 7), np.int64), np.array([[6]]))
    with EdgeSession.open(decoder_bundle, engine=engine_of(device)) as session:
        decoder = Decoder(session)
        cache = decoder.step(tokens, mask, positions, decoder.empty_cache(1)).cache
    answers = []
    for engine in (engine_of(device), FaultyEngine(OnnxRuntimeEngine())):  # the second takes it through numpy
        with EdgeSession.open(decoder_bundle, engine=engine) as session:
            answers.append(Decoder(session).step(*one, cache).logits)
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-4)
    del cache
    assert device.cuda.is_clean


def test_a_cache_of_onnxruntime_goes_on_here(device: Device, decoder_bundle: Bundle) -> None:
    tokens, mask, positions = left_padded(PROMPTS[:1])
    one = (np.array([[7]]), np.ones((1, 7), np.int64), np.array([[6]]))
    with EdgeSession.open(decoder_bundle) as session:
        decoder = Decoder(session)
        cache = decoder.step(tokens, mask, positions, decoder.empty_cache(1)).cache
        expected = decoder.step(*one, cache).logits
        assert not any(isinstance(tensor, HeldArray) for tensor in cache.tensors.values())
    with EdgeSession.open(decoder_bundle, engine=engine_of(device)) as session:
        np.testing.assert_allclose(Decoder(session).step(*one, cache).logits, expected, atol=1e-4)
    assert device.cuda.is_clean


def test_a_text_longer_than_what_was_built_says_so(device: Device, decoder_bundle: Bundle) -> None:
    engine = engine_of(device)
    build_engines(decoder_bundle.path, engine.library, device.library.__version__, largest={"past_sequence_length": 8})
    try:
        with EdgeSession.open(decoder_bundle, engine=engine) as session:
            stream = Generator(session).stream(PROMPTS[:1], GenerationConfig(max_new_tokens=POSITIONS, eos_ids=()))
            with pytest.raises(EngineError, match=r"past_key_values\.0\.key of .* --cache of nsn-edge build"):
                list(stream)
            assert len(stream.generations[0].tokens) == 4, "a cache of 6, 7 and 8 was taken"
    finally:
        build_engines(decoder_bundle.path, engine.library, device.library.__version__)
