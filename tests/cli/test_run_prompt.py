"""`nsn-edge run --prompt`: the text as it comes, the document for programs, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from decoder_folder import write_decoder_folder

from nsn_edge.adaptation import adapt
from nsn_edge.bundle import Bundle
from nsn_edge.cli import main
from nsn_edge.cli.common import INTERRUPTED, run_main
from nsn_edge.convert import NSNConfig
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.runtimes.generation import GenerationConfig, Generator
from nsn_edge.runtimes.session import EdgeSession

PROMPT = "the value of a method"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("decoder")
    checkpoint = adapt(write_decoder_folder(root / "model"), "text-generation", NSNConfig(method="svd"))
    return export_bundle(checkpoint, root / "bundle", ExportConfig(forms=("static", "sliced")))


def run(bundle: Bundle, *arguments: object) -> int:
    return run_main(main, ["run", str(bundle.path), *map(str, arguments)])


def documents(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def expected_text(bundle: Bundle, prompt: str, rank: int | None = None, **settings: Any) -> str:
    with EdgeSession.open(bundle) as session:
        return Generator(session).generate([prompt], GenerationConfig(**settings), rank)[0].text


def test_the_text_goes_to_stdout_and_the_figures_to_stderr(decoder: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    rank = decoder.manifest.ladder.ranks[1]
    assert run(decoder, "--prompt", PROMPT, "--rank", rank, "--max-new-tokens", 9) == 0
    captured = capsys.readouterr()
    assert captured.out == PROMPT + expected_text(decoder, PROMPT, rank, max_new_tokens=9) + "\n"
    assert captured.err.startswith(f"rank {rank}: 5 tokens read in ")
    assert " 9 written (" in captured.err
    assert captured.err.endswith("ended by length\n")


def test_programs_get_a_document_per_prompt(decoder: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    chance = ("--temperature", 2, "--top-k-sampling", 40, "--top-p", 0.99, "--seed", 5)
    assert run(decoder, "--prompt", PROMPT, "--prompt", "if", "--max-new-tokens", 6, *chance, "--json") == 0
    captured = capsys.readouterr()
    found = documents(captured.out)
    assert [document["prompt"] for document in found] == [PROMPT, "if"]
    settings = {"max_new_tokens": 6, "temperature": 2.0, "top_k": 40, "top_p": 0.99, "seed": 5}
    assert [document["text"] for document in found] == [
        expected_text(decoder, prompt, **settings) for prompt in (PROMPT, "if")
    ]
    assert found[0]["kind"] == "generation"
    assert found[0]["prompt_tokens"] == 5
    assert found[0]["ranks"] == [decoder.manifest.ladder.max_rank] * len(found[0]["tokens"])
    assert found[0]["prefill_tokens_per_s"] > 0 < found[0]["decode_tokens_per_s"]
    assert captured.err == ""


def test_a_stop_text_and_a_share_of_the_flops(decoder: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    rank = decoder.manifest.ladder.rung_within(0.5).rank
    whole = expected_text(decoder, PROMPT, rank, max_new_tokens=12)
    stop = whole[len(whole) // 2 :][:3]
    arguments = ("--prompt", PROMPT, "--flops", 0.5, "--max-new-tokens", 12, "--stop", stop, "--json")
    assert run(decoder, *arguments) == 0
    (document,) = documents(capsys.readouterr().out)
    assert document["text"] == whole[: whole.find(stop)]
    assert (document["finish_reason"], set(document["ranks"])) == ("stop", {rank})
    assert run(decoder, *arguments, "--form", "sliced") == 0
    (sliced,) = documents(capsys.readouterr().out)
    assert sliced["finish_reason"] == "stop"


def test_an_interrupt_keeps_what_was_printed(
    decoder: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = expected_text(decoder, PROMPT, max_new_tokens=20)
    run_one, calls = EdgeSession.run, 0

    def interrupted(self: EdgeSession, *arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 10:
            raise KeyboardInterrupt
        return run_one(self, *arguments, **settings)

    monkeypatch.setattr(EdgeSession, "run", interrupted)
    assert run(decoder, "--prompt", PROMPT, "--max-new-tokens", 20) == INTERRUPTED
    captured = capsys.readouterr()
    printed = captured.out.removesuffix("\n").removeprefix(PROMPT)
    assert printed
    assert whole.startswith(printed)
    assert len(printed) < len(whole)
    assert captured.err.strip().startswith("nsn-edge: interrupted")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", ""), "an empty prompt"),
        (("--prompt", "the " * 80), "a prompt of 80 tokens is longer than the model's 64"),
        (("--prompt", "a", "--prompt", "the " * 80), "a prompt of 80 tokens"),
        (("--prompt", "a", "--query", "b"), "run them apart"),
        (("--prompt", "a", "--inputs", "x.npz"), "run them apart"),
        (("--prompt", "a", "--rank", 0), "rank 0 is outside 1..32"),
        (("--prompt", "a", "--rank", 33), "rank 33 is outside 1..32"),
        (("--prompt", "a", "--max-new-tokens", 0), "max_new_tokens is a whole number of 1 or more, not 0"),
        (("--prompt", "a", "--temperature", "nan"), "the temperature is a number of 0 or more, not nan"),
        (("--prompt", "a", "--top-p", 0), "top_p lies in (0, 1], not 0.0"),
        (("--prompt", "a", "--top-k-sampling", 0), "top_k is a whole number of 1 or more, not 0"),
        (("--prompt", "a", "--stop", ""), "stop is a tuple of texts that are not empty"),
        (("--query", "a"), "continue a text with --prompt"),
    ],
)
def test_mistakes_are_one_line(
    decoder: Bundle, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], message: str
) -> None:
    assert run(decoder, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("nsn-edge: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_bundle_that_is_no_decoder(text_bundle: tuple[Path, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(main, ["run", str(text_bundle[0]), "--prompt", "loop"]) == 2
    assert "without a decoder's cache" in capsys.readouterr().err
