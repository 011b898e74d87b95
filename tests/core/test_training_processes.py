"""Several processes train to what one does, and a run that was killed goes on: in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_encoder import write_encoder_folder

from nsn_edge.checkpoint import WEIGHTS_NAME, Checkpoint
from nsn_edge.cli import main
from nsn_edge.cli.common import run_main
from nsn_edge.layers import nsn_layers
from nsn_edge.training import saving

HELPER = Path(__file__).resolve().parents[1] / "support" / "killed_train.py"
TEXTS = ("open the file", "a class of errors", "the value is 3", "if an object is closed", "with a statement")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint without dropout, texts, and `alone`: what one process made of them."""
    folder = tmp_path_factory.mktemp("processes")
    model = write_encoder_folder(folder / "model")
    config = model / "config.json"
    config.write_text(config.read_text().replace('_dropout_prob": 0.1', '_dropout_prob": 0.0'))
    (folder / "texts.txt").write_text("\n".join(f"{text} {i}" for i in range(8) for text in TEXTS))
    assert run_main(main, ["adapt", str(model), "-o", str(folder / "ck"), "--method", "svd"]) == 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert run_main(main, ["train", *arguments(folder, "alone")]) == 0
    torch.set_num_threads(threads)
    return folder


def arguments(folder: Path, output: str) -> list[str]:
    """Six steps of eight texts, a state after every second; the paper's weights have a state of their own."""
    line = [str(folder / "ck"), "-o", str(folder / output), "--data", str(folder / "texts.txt"), "--save-every", "2"]
    return [
        *line,
        "--steps",
        "6",
        "--batch-size",
        "8",
        "--weights",
        "uncertainty",
        "--plan",
        "sandwich",
        "--lr",
        "1e-3",
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / WEIGHTS_NAME)


def test_two_processes_train_to_what_one_does(place: Path) -> None:
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    line = [*launch, "-m", "nsn_edge", "train", *arguments(place, "together")]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("6 steps") == 1  # one process speaks
    assert not (place / "together.run").exists()
    alone, together = tensors(place / "alone"), tensors(place / "together")
    start = tensors(place / "ck")
    assert set(alone) == set(together)
    moved = {name: float((value - start[name]).abs().max()) for name, value in alone.items()}
    assert max(moved.values()) > 1e-3
    for name, value in alone.items():
        # Adam divides by the size of the gradient, so rounding shows where that is nearly zero.
        torch.testing.assert_close(together[name], value, rtol=1e-3, atol=2e-4)
    first, second = (Checkpoint.load(place / name).provenance["training"]["ranks"] for name in ("alone", "together"))
    assert first == second


@pytest.mark.parametrize(("moment", "stands"), [("written 4", "checkpoint-2"), ("published 4", "checkpoint-4")])
def test_a_killed_run_goes_on_to_the_same_weights(place: Path, moment: str, stands: str) -> None:
    output = f"killed-{moment.split()[0]}"
    line = [sys.executable, str(HELPER), moment, *arguments(place, output)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300, env=environment())
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert not (place / output).exists()
    run = place / f"{output}.run" / "nested"
    last = saving.last_saved(run)
    assert last is not None
    assert last.name == stands
    assert (run / saving.STAGING / "checkpoint-4").is_dir() == moment.startswith("written")
    assert run_main(main, ["train", *arguments(place, output)]) == 0
    assert not run.exists()
    alone, resumed = tensors(place / "alone"), tensors(place / output)
    for name, value in alone.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)
    assert len(nsn_layers(Checkpoint.load(place / output).model)) == 12
