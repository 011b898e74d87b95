"""The loop against transformers: the same tokens at every rank, alone and in a padded batch, with ranks that change."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_bundle import write_tiny_bundle
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from nsn_edge.bundle import Bundle, TaskSpec
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.convert import NSNConfig, nsnify_
from nsn_edge.errors import BundleError, EngineError, RankError, UsageError
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.layers import at_dense, at_rank
from nsn_edge.runtimes.engines import FaultyEngine, HeldArray, OnnxRuntimeEngine
from nsn_edge.runtimes.generation import Decoder, GenerationConfig, Generator
from nsn_edge.runtimes.generation.generator import left_padded
from nsn_edge.runtimes.session import EdgeSession

VOCABULARY, POSITIONS = 96, 48
FORMS = ("static", "gated", "bound", "sliced", "masked")
PROMPTS = ([5, 6, 7, 8, 9, 10], [3], [11, 12, 13])
LLAMA = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=POSITIONS,
    initializer_range=0.3,
)
GPT2 = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS, initializer_range=0.3)


def cut(model: Any, folder: Path, assets: Path | None = None) -> tuple[Any, Bundle]:
    nsnify_(model.eval(), NSNConfig(method="svd", align=1))
    task = TaskSpec("text-generation", max_length=POSITIONS)
    checkpoint = Checkpoint(model, task, "tiny", assets=assets)
    config = ExportConfig(fractions=(0.5, 0.25), forms=FORMS)
    return model, export_bundle(checkpoint, folder, config)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Bundle]:
    torch.manual_seed(0)
    return cut(LlamaForCausalLM(LLAMA), tmp_path_factory.mktemp("llama") / "bundle")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Bundle]:
    torch.manual_seed(0)
    return cut(GPT2LMHeadModel(GPT2), tmp_path_factory.mktemp("gpt2") / "bundle")


@pytest.fixture
def session(llama: tuple[Any, Bundle]) -> Iterator[EdgeSession]:
    with EdgeSession.open(llama[1]) as session:
        yield session


@contextlib.contextmanager
def as_rung(model: Any, bundle: Bundle, rank: int) -> Iterator[None]:
    dense = rank in bundle.manifest.ladder.ranks and bundle.manifest.ladder.rung(rank).dense
    with at_dense(model) if dense else at_rank(model, rank), torch.no_grad():
        yield


def continued_by_transformers(model: Any, prompts: Sequence[Sequence[int]], n: int) -> list[list[int]]:
    tokens, mask, _ = left_padded(prompts)
    found = model.generate(
        torch.from_numpy(tokens),
        attention_mask=torch.from_numpy(mask),
        max_new_tokens=n,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return found[:, tokens.shape[1] :].tolist()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_is_transformers_generate_at_every_rung(family: str, request: pytest.FixtureRequest) -> None:
    model, bundle = request.getfixturevalue(family)
    config = GenerationConfig(max_new_tokens=24)
    answers = set()
    with EdgeSession.open(bundle) as session:
        generator = Generator(session)
        for rank in bundle.manifest.ladder.ranks:
            with as_rung(model, bundle, rank):
                expected = continued_by_transformers(model, PROMPTS, 24)
            found = generator.generate(PROMPTS, config, rank)
            assert [generation.tokens for generation in found] == expected
            assert [generation.ranks for generation in found] == [[rank] * 24] * 3
            assert {generation.finish_reason for generation in found} == {"length"}
            alone = generator.generate([PROMPTS[1]], config, rank)[0]
            assert alone.tokens == expected[1]
            answers.add(tuple(expected[0]))
    assert len(answers) == 3, "the rungs must differ for this to show anything"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("through_numpy", [False, True])
def test_a_rank_that_changes_is_recomputation_with_those_ranks(
    llama: tuple[Any, Bundle], form: str, through_numpy: bool
) -> None:
    model, bundle = llama
    low, middle, top = bundle.manifest.ladder.ranks
    plan = [top, low, low, middle, top, low, middle, middle]
    if form != "static":
        plan[0] = plan[4] = low + 1  # no rung: these forms serve every rank
    engine: Any = OnnxRuntimeEngine()
    engine = FaultyEngine(engine) if through_numpy else engine  # a wrapper that holds no tensors
    with EdgeSession.open(bundle, engine=engine, form=form) as session:
        found = Generator(session).generate([PROMPTS[0]], GenerationConfig(max_new_tokens=8), plan.__getitem__)[0]
    tokens, cache, expected = torch.tensor([PROMPTS[0]]), None, []
    for rank in plan:
        with as_rung(model, bundle, rank):
            output = model(tokens, past_key_values=cache, use_cache=True)
        cache, tokens = output.past_key_values, output.logits[:, -1:].argmax(-1)
        expected.append(int(tokens))
    assert found.tokens == expected
    assert found.ranks == plan
    steady = set()
    for rank in bundle.manifest.ladder.ranks:
        with as_rung(model, bundle, rank):
            steady.add(tuple(continued_by_transformers(model, [PROMPTS[0]], 8)[0]))
    assert tuple(expected) not in steady, "the change of rank must show"


def test_the_cache_is_handed_on_without_a_copy(session: EdgeSession) -> None:
    decoder = Decoder(session)
    low, _, top = session.ladder.ranks
    tokens, mask, positions = left_padded([PROMPTS[0]])
    first = decoder.step(tokens, mask, positions, decoder.empty_cache(1), top)
    held = first.cache.tensors["past_key_values.1.value"]
    assert not isinstance(held, HeldArray)
    before, address = held.numpy().copy(), held.data_ptr()
    one = np.array([[7]])
    for _ in range(2):  # a step leaves the cache it was given as it was, so it can be taken twice
        second = decoder.step(one, np.ones((1, 7), np.int64), one * 0 + 6, first.cache, low)
        assert first.cache.tensors["past_key_values.1.value"].data_ptr() == address
        assert (held.numpy() == before).all()
        assert (second.cache.tensors["past_key_values.1.value"].numpy()[:, :, :6] == before).all()
        assert second.cache.length == 7


def test_a_cache_outlives_the_session_that_made_it(llama: tuple[Any, Bundle]) -> None:
    tokens, mask, positions = left_padded([PROMPTS[0]])
    with EdgeSession.open(llama[1]) as session:
        decoder = Decoder(session)
        cache = decoder.step(tokens, mask, positions, decoder.empty_cache(1)).cache
    with EdgeSession.open(llama[1]) as session:
        step = Decoder(session).step(np.array([[7]]), np.ones((1, 7), np.int64), np.array([[6]]), cache)
        whole = Decoder(session).step(*left_padded([[*PROMPTS[0], 7]]), decoder.empty_cache(1))
    assert np.allclose(step.logits[:, -1], whole.logits[:, -1], atol=1e-4)


def test_without_a_rank_the_session_chooses_and_may_change_its_mind(session: EdgeSession) -> None:
    low, _, top = session.ladder.ranks
    session.switch(low).result()
    session.switch(top).result()
    stream = Generator(session).stream([PROMPTS[0]], GenerationConfig(max_new_tokens=6))
    ranks = []
    for piece in stream:
        ranks.append(piece.rank)
        if len(ranks) == 3:
            session.switch(low).result()
    assert ranks == [top, top, top, low, low, low] == stream.generations[0].ranks


def test_drawing_depends_on_the_seed_alone(session: EdgeSession) -> None:
    generator = Generator(session)
    prompts = [PROMPTS[0], PROMPTS[0]]

    def draw(seed: int) -> list[list[int]]:
        config = GenerationConfig(max_new_tokens=12, temperature=2.0, top_k=50, top_p=0.95, seed=seed)
        return [generation.tokens for generation in generator.generate(prompts, config)]

    first, again, other = draw(1), draw(1), draw(2)
    assert first == again
    assert first != other
    assert first[0] != first[1], "equal prompts of a batch differ"


def test_a_text_ends_with_its_end_token_while_the_others_go_on(session: EdgeSession) -> None:
    generator = Generator(session)
    plain = generator.generate(PROMPTS, GenerationConfig(max_new_tokens=16))
    eos = plain[0].tokens[4]
    found = generator.generate(PROMPTS, GenerationConfig(max_new_tokens=16, eos_ids=(eos,)))
    for generation, without in zip(found, plain, strict=True):
        end = without.tokens.index(eos) + 1 if eos in without.tokens else 16
        assert generation.tokens == without.tokens[:end]
        assert generation.finish_reason == ("eos" if end < 16 or without.tokens[-1] == eos else "length")
        assert len(generation.decode_ms) == len(generation.tokens) - 1
    assert len({len(generation.tokens) for generation in found}) > 1, "one must go on alone"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_position_of_the_model_can_be_used_and_no_more(family: str, request: pytest.FixtureRequest) -> None:
    model, bundle = request.getfixturevalue(family)
    long, short = list(range(POSITIONS - 2)), [4, 5]
    with EdgeSession.open(bundle) as session:
        generator = Generator(session)
        found = generator.generate([long, short], GenerationConfig(max_new_tokens=1000, eos_ids=()))
        assert [len(generation.tokens) for generation in found] == [3, POSITIONS - 1]
        assert {generation.finish_reason for generation in found} == {"length"}
        with at_dense(model), torch.no_grad():
            expected = continued_by_transformers(model, [short], POSITIONS - 2)[0]
        assert found[1].tokens[:-1] == expected
        full = generator.generate([list(range(POSITIONS))], GenerationConfig(max_new_tokens=5))[0]
        assert (len(full.tokens), full.finish_reason) == (1, "length")
        assert full.decode_ms_per_token is None


def test_end_tokens_come_from_the_bundle(llama: tuple[Any, Bundle], tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = LlamaForCausalLM(LLAMA)
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    (tmp_path / "assets" / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    _, bundle = cut(plain, tmp_path / "bundle", tmp_path / "assets")
    with EdgeSession.open(bundle) as session:
        assert Generator(session).eos_ids == (7, 9)
    (bundle.path / "generation_config.json").write_text("[]")
    with EdgeSession.open(bundle) as session, pytest.raises(BundleError, match=r"generation_config\.json"):
        Generator(session)


def test_what_cannot_be_continued(session: EdgeSession) -> None:
    generator = Generator(session)
    for prompts, message in [
        ([], "nothing to continue"),
        ("Once upon", "nothing to continue"),
        ([[]], "an empty prompt"),
        (["Once upon"], "a text prompt needs a tokenizer"),
        ([[1], [3, -4]], "a prompt has the token -4"),
        ([list(range(POSITIONS + 1))], f"a prompt of {POSITIONS + 1} tokens is longer than the model's {POSITIONS}"),
    ]:
        with pytest.raises(UsageError, match=message):
            generator.stream(prompts)
    with pytest.raises(UsageError, match="stop strings need a tokenizer"):
        generator.stream([[1]], GenerationConfig(stop=("x",)))
    for rank in (0, 33):
        with pytest.raises(RankError, match=rf"rank {rank} is outside 1\.\.32"):
            generator.generate([[1]], rank=rank)
    with pytest.raises(EngineError):
        generator.generate([[VOCABULARY]])


def test_a_bundle_that_is_no_decoder(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    with EdgeSession.open(tmp_path / "bundle") as session, pytest.raises(UsageError, match="cannot generate text"):
        Generator(session)


def test_a_cache_of_another_model_or_batch(session: EdgeSession, gpt2: tuple[Any, Bundle]) -> None:
    tokens, mask, positions = left_padded([PROMPTS[0]])
    decoder = Decoder(session)
    with EdgeSession.open(gpt2[1]) as other, pytest.raises(UsageError, match="the cache is of another model"):
        decoder.step(tokens, mask, positions, Decoder(other).empty_cache(1))
    with pytest.raises(UsageError, match="the cache holds 2 texts of 0 tokens"):
        decoder.step(tokens, mask, positions, decoder.empty_cache(2))
    with pytest.raises(UsageError, match=r"the cache holds 1 texts of 0 tokens; 1 x 6 tokens with a mask of \[1, 5\]"):
        decoder.step(tokens, mask[:, 1:], positions, decoder.empty_cache(1))


def test_logits_that_are_not_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LLAMA)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    _, bundle = cut(model, tmp_path / "bundle")
    with EdgeSession.open(bundle) as session, pytest.raises(EngineError, match="logits are not numbers at rank 32"):
        Generator(session).generate([[1]])


def test_a_closed_session_says_so(llama: tuple[Any, Bundle]) -> None:
    session = EdgeSession.open(llama[1])
    stream = Generator(session).stream([[1, 2]], GenerationConfig(max_new_tokens=5))
    next(stream)
    session.close()
    with pytest.raises(EngineError, match="the session was closed"):
        next(stream)
    assert stream.generations[0].finish_reason is None
    assert len(stream.generations[0].tokens) == 1


def test_positions_are_those_of_transformers() -> None:
    tokens, mask, positions = left_padded([[7, 8, 9], [4]])
    assert tokens.tolist() == [[7, 8, 9], [0, 0, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions.tolist() == [[0, 1, 2], [1, 1, 0]]
