"""`nsn-edge run`: searching, arrays, choosing the rank, and one line for what is wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import TOP, TinyModel

from nsn_edge.cli import main
from nsn_edge.cli.common import run_main

TinyBundle = tuple[Path, TinyModel]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("the loop exits with break\n\n  a file opens  \nthe file ends not\n", encoding="utf-8")
    return path


def run(*arguments: object) -> int:
    return run_main(main, ["run", *map(str, arguments)])


def documents(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_query_finds_its_passage(text_bundle: TinyBundle, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (text_bundle[0], "--texts", texts, "--query", "a file opens", "--index-rank", 5, "--rank", 5)
    assert run(*arguments, "--json", "--top-k", 2) == 0
    (found,) = documents(capsys.readouterr().out)
    assert (found["schema_version"], found["kind"], found["rank"]) == (1, "search", 5)
    assert len(found["results"]) == 2
    assert found["results"][0]["text"] == "a file opens"
    assert found["results"][0]["title"] == "text 2"
    assert run(*arguments) == 0
    shown = capsys.readouterr().out
    assert "a file opens" in shown
    assert "(rank 5, " in shown


def test_queries_are_read_from_a_pipe(
    text_bundle: TinyBundle, texts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("break\n\n  file [red]\n"))
    assert run(text_bundle[0], "--texts", texts, "--json") == 0
    assert [found["query"] for found in documents(capsys.readouterr().out)] == ["break", "file [red]"]


def test_the_documentation_is_searched_by_default(text_bundle: TinyBundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(text_bundle[0], "--query", "break", "--query", "loop", "--json", "--top-k", 1) == 0
    found = documents(capsys.readouterr().out)
    assert [document["query"] for document in found] == ["break", "loop"]
    assert all(document["results"][0]["title"] for document in found)


@pytest.mark.parametrize(
    ("choice", "rank"),
    [
        ((), TOP),
        (("--rank", 2), 2),
        (("--flops", 1), TOP),
        (("--flops", 0.5), 5),
        (("--flops", 0.001), 2),
        (("--form", "sliced", "--flops", 0.6), 6),
        (("--form", "masked", "--rank", 3), 3),
        (("--memory-budget-mb", 0.003), 8),
        (("--share-weights", "--rank", 5), 5),
    ],
)
def test_the_rank_is_chosen(
    text_bundle: TinyBundle,
    texts: Path,
    capsys: pytest.CaptureFixture[str],
    choice: tuple[object, ...],
    rank: int,
) -> None:
    assert run(text_bundle[0], "--texts", texts, "--query", "loop", "--json", *choice) == 0
    assert documents(capsys.readouterr().out)[0]["rank"] == rank


def test_a_policy_chooses_the_rank_and_says_why(
    text_bundle: TinyBundle, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.toml"
    # Holds on any device: hotter than the coldest there is, or nothing known.
    policy.write_text(
        "schema_version = 1\nunknown_max_flops = 0.01\nmin_dwell_s = 3600\n"
        "[[temperature]]\nenter_c = -50\nleave_c = -60\nmax_flops = 0.01\n"
    )
    assert run(text_bundle[0], "--texts", texts, "--query", "loop", "--json", "--policy", policy) == 0
    captured = capsys.readouterr()
    assert documents(captured.out)[0]["rank"] == 2
    assert "rank 2: " in captured.err


def test_arrays_in_arrays_out(tiny_bundle: TinyBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, model = tiny_bundle
    x = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    saved = tmp_path / "deep" / "out.npz"
    assert run(path, "--inputs", tmp_path / "in.npz", "--outputs", saved, "--rank", 5, "--json") == 0
    (document,) = documents(capsys.readouterr().out)
    assert (document["kind"], document["rank"]) == ("run", 5)
    assert document["outputs"] == {"y": {"dtype": "float32", "shape": [3, 8]}}
    with np.load(saved) as outputs:
        np.testing.assert_allclose(outputs["y"], model(x, 5), rtol=1e-4, atol=1e-4)
    assert run(path, "--inputs", tmp_path / "in.npz") == 0
    assert "y  float32 [3, 8]" in capsys.readouterr().out


def damaged_inputs(path: Path, kind: str) -> None:
    if kind == "pickled":
        np.savez(path, x=np.array([{}], dtype=object))
    elif kind == "text":
        path.write_text("not an archive")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        np.savez(path, x=np.zeros(1000))
        path.write_bytes(path.read_bytes()[:500])
    elif kind == "one array":
        with path.open("wb") as stream:
            np.save(stream, np.zeros(3))


@pytest.mark.parametrize("kind", ["absent", "pickled", "text", "empty", "cut", "one array"])
def test_inputs_that_are_none(
    tiny_bundle: TinyBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = tmp_path / "in.npz"
    damaged_inputs(path, kind)
    assert run(tiny_bundle[0], "--inputs", path) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--rank", 2, "--flops", 0.5), 2, "give one of them"),
        (("--inputs", "a.npz", "--query", "x"), 2, "--inputs runs arrays"),
        (("--outputs", "a.npz"), 2, "--outputs saves what --inputs gives"),
        (("--rank", 99, "--query", "x"), 2, "rank 99 is outside 1..16"),
        (("--rank", 3, "--query", "x"), 2, "the rungs are 2, 5, 8, 16"),
        (("--query", "x", "--texts", "absent.txt"), 2, "cannot read absent.txt"),
        (("--query", " "), 2, "the query is empty"),
        (("--query", "x", "--policy", "absent.toml"), 2, "cannot read the policy absent.toml"),
        (("--query", "x", "--memory-budget-mb", 0.0001), 2, "raise the budget"),
        (("--query", "x", "--provider", "tensorrt"), 1, "no tensorrt provider"),
    ],
)
def test_mistakes_are_one_line(
    text_bundle: TinyBundle,
    texts: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    code: int,
    message: str,
) -> None:
    extra = () if "--texts" in arguments or "--inputs" in arguments else ("--texts", texts)
    if "--provider" in arguments:
        import onnxruntime

        if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this onnxruntime has the TensorRT provider")
    assert run(text_bundle[0], *arguments, *extra) == code
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("nsn-edge: ")
    assert message in error


def test_a_bundle_that_cannot_search_says_what_to_do(
    tiny_bundle: TinyBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_bundle[0], "--query", "x") == 2
    assert "give its inputs as arrays instead" in capsys.readouterr().err
    assert run(tmp_path / "absent", "--query", "x") == 2
    assert "no bundle at" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\n  \n", b"\xff\xfe\x00"])
def test_texts_that_are_none(
    text_bundle: TinyBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    assert run(text_bundle[0], "--query", "x", "--texts", path) == 2
    assert str(path) in capsys.readouterr().err
