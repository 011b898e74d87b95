"""The GPU check, where there is no GPU: what can be tried on the processor runs, the rest says why it does not."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from built_engines import build_engines, pretend_device
from fake_nvml import FakeNvml, error
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nsn_edge.bundle import Bundle
from nsn_edge.errors import ProviderError
from nsn_edge.runtimes.telemetry import NvmlGpu

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ENERGY, POWER = "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage"

Load = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Imports a part of the check."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return lambda name: importlib.import_module(f"gpu_check.{name}")


@pytest.fixture
def run(load: Load, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a section in this process, as its own would; returns what it wrote."""
    threads = torch.get_num_threads()

    def run(name: str, device: str = "cpu", **plan: Any) -> dict[str, Any]:
        settings = {"output": tmp_path, "bundles": tmp_path / "bundles", "device": device, "quick": True, **plan}
        (tmp_path / "parts").mkdir(exist_ok=True)
        try:
            assert load("runner").run_child(name, load("section").Plan(**settings), 60.0) == 0
        finally:
            torch.set_num_threads(threads)
        return json.loads((tmp_path / "parts" / f"{name}.json").read_text())

    return run


def check_rows(results: dict[str, Any]) -> None:
    """Every group of rows has one dense row, and figures that fit together."""
    assert results["status"] == "ok", results["why"]
    assert results["rows"]
    for row in results["rows"]:
        assert row["p50_ms"] > 0
        assert row["of_ideal"] == pytest.approx(row["relative_to_dense"] / row["flops_fraction"])
        assert (row["flops_fraction"] == 1.0) == row["dense"]
        if row["dense"]:
            assert row["relative_to_dense"] == 1.0
    assert results["parity"]
    assert all(item["ok"] for item in results["parity"]), results["parity"]
    assert all(0 <= item["select_p50_ms"] <= item["added_p99_ms"] for item in results["switches"])


@pytest.mark.parametrize("name", ["torch-layers", "torch-decoder"])
def test_the_torch_reference_on_the_processor(run: Callable[..., dict[str, Any]], name: str) -> None:
    results = run(name)
    check_rows(results)
    assert results["switches"]
    assert {row["workload"] for row in results["rows"]} == {"decode", "prefill"}
    assert len({row["rank"] for row in results["rows"]}) >= 4
    assert any("CUDA graphs" in note for note in results["notes"])


def test_engines_on_bundles(
    run: Callable[..., dict[str, Any]], load: Load, tmp_path: Path, text_bundle: tuple[Path, Any]
) -> None:
    plan = load("section").Plan(tmp_path, tmp_path / "bundles", "cpu", quick=True)
    section = load("section").Section(plan, load("section").Results(), lambda: None, 60.0)
    load("bundles")._layers(tmp_path / "bundles/layers", section)
    text_bundle[0].rename(tmp_path / "bundles/text")
    listed = run("bundles", export=False)["facts"]["bundles"]
    assert list(listed) == ["layers", "text"]
    results = run("onnxruntime-cuda")
    check_rows(results)
    found = {(row["model"], row["form"]) for row in results["rows"]}
    assert found == {
        *(("2 layers of 128", form) for form in ("static, shared weights", "static", "bound", "sliced")),
        *(("tiny", form) for form in ("static, shared weights", "static", "sliced")),
    }
    assert {(item["model"], item["form"]) for item in results["switches"]} == found
    assert results["facts"]["engines"]["layers/static"]["engine"] == "onnxruntime-cpu"


def test_a_bundle_that_is_damaged_costs_no_other(
    run: Callable[..., dict[str, Any]], tmp_path: Path, text_bundle: tuple[Path, Any]
) -> None:
    (tmp_path / "bundles").mkdir()
    text_bundle[0].rename(tmp_path / "bundles/text")
    graph = tmp_path / "bundles/text/sliced.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))
    (tmp_path / "bundles/cut").mkdir()
    (tmp_path / "bundles/cut/manifest.json").write_text("{")
    results = run("onnxruntime-cuda")
    assert results["status"] == "failed"
    assert results["why"].startswith("cut: BundleError at ")
    assert any(note.startswith("text/sliced: EngineError at ") for note in results["notes"])
    assert {row["form"] for row in results["rows"]} == {"static", "static, shared weights"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_every_section_says_why(
    run: Callable[..., dict[str, Any]], load: Load, tmp_path: Path, text_bundle: tuple[Path, Any]
) -> None:
    (tmp_path / "bundles").mkdir()
    text_bundle[0].rename(tmp_path / "bundles/text")
    for name in load("runner").MEASURING:
        results = run(name, device="cuda")
        assert (results["status"], results["rows"]) == ("not run", []), name
        assert results["why"], name


def test_tensorrt_on_a_made_up_gpu(
    run: Callable[..., dict[str, Any]],
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    text_bundle: tuple[Path, Any],
) -> None:
    """The engines of `nsn-edge build`, with the library and CUDA played by stand-ins that compute."""
    (tmp_path / "bundles").mkdir()
    path = text_bundle[0].rename(tmp_path / "bundles/text")
    pretend_device(monkeypatch)
    monkeypatch.setattr(load("engines"), "build", lambda section, backend, bundle: build_engines(path))
    memory = iter(range(10**6, 10**9, 1000))
    nvml = FakeNvml()

    class Memory:
        @property
        def used(self) -> int:
            return next(memory)

    nvml.answers["nvmlDeviceGetMemoryInfo"] = Memory()
    nvml.open = 1
    monkeypatch.setattr(load("timing").NvmlGpu, "open", lambda: NvmlGpu(nvml, "handle"))
    results = run("tensorrt", device="cuda", export=False)
    check_rows(results)
    assert {row["form"] for row in results["rows"]} == {"static", "sliced"}
    assert {item["form"] for item in results["switches"]} == {"static", "sliced"}
    added = {(item["form"], item["rank"]): item["added_bytes"] for item in results["memory"]}
    assert set(added.values()) == {1000}
    assert ("static", 8) not in added  # the first pays for the engine itself
    assert results["facts"]["engines"]["text/static"]["engine"] == "tensorrt"


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_what_is_built_for_it(load: Load, text_bundle: tuple[Path, Any]) -> None:
    command = load("engines").build_command("tensorrt-rtx", Bundle.open(text_bundle[0]))
    assert command[1:4] == ["-m", "nsn_edge", "build"]
    done = subprocess.run([*command, "--dry-run", "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- the parent: one process per section ----------------------------------------------------------------------------


def gpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_on_the_processor(tmp_path: Path) -> None:
    done = gpu("-o", str(tmp_path), "--device", "cpu", "--quick", "--sections", "machine", "torch-layers", "tensorrt")
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == written
    assert (written["kind"], written["schema_version"], written["targets"]) == ("benchmark-gpu", 1, [])
    statuses = {name: section["status"] for name, section in written["sections"].items()}
    assert statuses == {"machine": "ok", "torch-layers": "ok", "tensorrt": "not run"}
    assert written["sections"]["machine"]["facts"]["host"]["python"]
    assert "it needs a GPU" in written["sections"]["tensorrt"]["why"]
    assert "2 layers of 128" in (tmp_path / "gpu.txt").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_without_a_gpu(tmp_path: Path) -> None:
    done = gpu("-o", str(tmp_path), "--sections", "onnxruntime-cuda", "torch-layers")
    assert done.returncode == 3
    assert "nothing could be measured here" in done.stderr
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert [section["status"] for section in sections.values()] == ["not run"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "-o/--output"),
        (["-o", "x", "--sections", "nothing"], "invalid choice"),
        (["-o", "x", "--bundles", "not-there"], "there is no folder not-there"),
        (["-o", "x", "--time-limit", "0"], "above 0"),
    ],
)
def test_wrong_options(arguments: list[str], message: str) -> None:
    done = gpu(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


CHILD = """
import json, os, sys, time
folder = sys.argv[sys.argv.index("-o") + 1]
name = sys.argv[sys.argv.index("--child") + 1]
saved = {"status": "ok", "facts": {"part_seconds": {"float16": 1.0}}, "rows": [{"model": "m", "kept": True}]}
with open(f"{folder}/parts/{name}.json", "w") as file:
    json.dump(saved, file)
%s
"""


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("os.abort()", "killed by signal 6"),
        ("sys.exit('the driver is gone')", "ended with 1: the driver is gone"),
        ("time.sleep(60)", "stopped after"),
    ],
)
def test_a_section_that_dies_keeps_what_it_had(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str, why: str
) -> None:
    runner = load("runner")
    entry = tmp_path / "entry.py"
    entry.write_text(CHILD % end)
    monkeypatch.setattr(runner, "_ENTRY", entry)
    monkeypatch.setattr(runner, "_GRACE_S", -4.0)
    monkeypatch.setattr(load("results"), "save_document", lambda data, folder: None)
    monkeypatch.setattr(runner, "save_document", lambda data, folder: None)
    monkeypatch.setattr(runner, "SECTIONS", {"torch-layers": 5.0 if "sleep" in end else 30.0})
    plan = runner.Plan(tmp_path, tmp_path / "bundles")
    done = runner.run_sections(plan, ["torch-layers"], 100.0)
    results = done["torch-layers"]
    assert results.status == "failed"
    assert why in results.why
    assert results.rows == [{"model": "m", "kept": True}]
    assert load("results").exit_code(done, runner.MEASURING) == 1


def test_time_that_runs_out(load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runner = load("runner")
    monkeypatch.setattr(runner, "_run_process", lambda plan, name, limit_s: runner.Results(facts={"limit_s": limit_s}))
    plan = runner.Plan(tmp_path, tmp_path / "bundles")
    done = runner.run_sections(plan, list(runner.SECTIONS), 1e6)
    assert {name: r.facts["limit_s"] for name, r in done.items()} == runner.SECTIONS
    halved = runner.run_sections(plan, ["tensorrt", "tensorrt-rtx"], 125.0)
    assert halved["tensorrt"].facts["limit_s"] == pytest.approx(60.0, abs=2.0)
    short = runner.run_sections(plan, ["machine"], 6.0)["machine"]
    assert (short.status, short.why) == ("not run", "no time was left of 6 s")


# --- targets and parts ----------------------------------------------------------------------------------------------


def test_targets_are_the_worst_of_the_layers_of_4096(load: Load, tmp_path: Path) -> None:
    section, results = load("section"), load("results")

    def row(model: str, rank: int, of_ideal: float, dense: bool = False) -> dict[str, Any]:
        place = {"model": model, "form": "CUDA graph", "workload": "decode", "batch_size": 1}
        return {**place, "rank": rank, "dense": dense, "of_ideal": of_ideal}

    rows = [row("16 layers of 4096", 512, 1.1), row("16 layers of 4096", 1024, 1.2), row("MiniLM", 96, 3.0)]
    done = {
        "torch-layers": section.Results(
            rows=[*rows, row("16 layers of 4096", 2049, 1.0, dense=True)],
            switches=[{"added_p99_ms": 0.4}],
            memory=[{"of_weights": 0.01}],
            parity=[{"difference": 1e-3, "limit": 1e-2}],
        )
    }
    plan = section.Plan(tmp_path, tmp_path)
    found = {(round(t.value, 6), t.limit): t.met for t in results.targets(plan, done)}
    assert found == {(1.2, 1.15): False, (0.4, 1.0): True, (0.01, 0.05): True, (0.1, 1.0): True}
    assert results.targets(section.Plan(tmp_path, tmp_path, "cpu"), done) == []


def test_parts_fail_alone(load: Load, tmp_path: Path) -> None:
    module = load("section")
    results, saved = module.Results(), []
    section = module.Section(module.Plan(tmp_path, tmp_path), results, lambda: saved.append(results.status), 60.0)

    class OutOfMemoryError(RuntimeError):
        """As torch's is called."""

    def fail(error: Exception) -> Callable[[], None]:
        def work() -> None:
            raise error

        return work

    section.part("absent", fail(ProviderError("this onnxruntime has no cuda provider")))
    section.part("large", fail(OutOfMemoryError("CUDA out of memory")))
    assert results.status == "ok"
    section.part("broken", fail(ValueError("a\nlong story")))
    section.part("late", fail(AssertionError("it was begun")), least_s=1e9)
    assert results.status == "failed"
    assert results.why.startswith("broken: ValueError at test_gpu_check.py:")
    assert [note.split(":")[0] for note in results.notes] == ["absent", "large", "broken", "late"]
    assert saved == ["ok", "ok", "failed", "failed"]


def test_calls_that_take_too_long_are_not_begun(load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timing, module = load("timing"), load("section")
    section = module.Section(module.Plan(tmp_path, tmp_path), module.Results(), lambda: None, 60.0)
    called: list[int] = []
    calls = {rank: functools.partial(called.append, rank) for rank in (64, 128)}
    monkeypatch.setattr(timing, "_timed_ms", lambda call: 10_000.0)
    assert timing.latency_rows(section, calls, {64: 0.5, 128: 1.0}, 128, model="m", workload="prefill") == []
    assert section.results.notes == ["m prefill: not run: a call takes 10.0 s, too long for the time left"]
    assert called == [128]


@pytest.mark.parametrize(
    ("answers", "by"),
    [
        ({}, "counter"),
        ({ENERGY: error("NOT_SUPPORTED")}, "power"),
        ({ENERGY: error("NOT_SUPPORTED"), POWER: error("NOT_SUPPORTED")}, None),
        ({ENERGY: error("GPU_IS_LOST")}, None),
    ],
)
def test_energy(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answers: dict[str, Any], by: str | None
) -> None:
    timing, module = load("timing"), load("section")
    section = module.Section(module.Plan(tmp_path, tmp_path), module.Results(), lambda: None, 1e6)
    nvml = FakeNvml(**answers)
    clock = iter(i * 0.5 for i in range(100))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))

    def call() -> None:
        if not isinstance(nvml.answers[ENERGY], Exception):
            nvml.answers[ENERGY] += 6_000

    took = timing.energy_per_call_mj(NvmlGpu.open(nvml=nvml), call, 2, section)
    if by is None:
        assert took is None
    elif by == "counter":
        assert took == 3_000.0  # each call is two inferences
    else:
        assert took == pytest.approx(12_345 * 2.0 / 4)  # 12.3 W for 2 s by the clock, four inferences
    assert timing.energy_per_call_mj(None, call, 1, section) is None


def test_recording_and_replaying(
    load: Load, run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's part of the torch sections, with torch.cuda played by the processor."""
    cuda, device = torch.cuda, load("torch_device")
    signature = inspect.signature(cuda.graph.__init__)
    replays: list[int] = []
    free = iter(range(10**9, 0, -1000))

    class Graph(TorchDispatchMode):
        """Records what torch does and does it again into the same memory, as a CUDA graph does."""

        def __init__(self) -> None:
            super().__init__()
            self.steps: list[tuple[Any, Any, Any, Any]] = []

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            self.steps.append((function, args, kwargs or {}, result))
            return result

        def replay(self) -> None:
            replays.append(id(self))
            for function, args, kwargs, result in self.steps:
                again = function(*args, **kwargs)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

    class Stream:
        def wait_stream(self, other: object) -> None:
            """Nothing to wait for."""

    @contextmanager
    def graph(*arguments: Any, **names: Any) -> Iterator[None]:
        signature.bind(None, *arguments, **names)
        with arguments[0]:
            yield

    @contextmanager
    def stream(of: object) -> Iterator[None]:
        yield

    fakes = {
        "is_available": lambda: True,
        "get_device_name": lambda: "a fake",
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda: (next(free), 10**9),
        "graph_pool_handle": lambda: (0, 1),
        "current_stream": Stream,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": graph,
        "stream": stream,
    }
    for name, fake in fakes.items():
        assert hasattr(cuda, name)
        monkeypatch.setattr(cuda, name, fake)
    monkeypatch.setattr(load("timing").NvmlGpu, "open", lambda: NvmlGpu(FakeNvml(), "handle"))
    started = device.TorchDevice.__init__

    def on_the_processor(self: Any, section: Any) -> None:
        started(self, section)
        self.where = "cpu"

    monkeypatch.setattr(device.TorchDevice, "__init__", on_the_processor)
    for name in ("torch-layers", "torch-decoder"):
        results = run(name, device="cuda")
        check_rows(results)
        assert {row["form"] for row in results["rows"]} == {"eager", "CUDA graph"}
        assert {item["added_bytes"] for item in results["memory"]} == {1000}
        assert {item["form"] for item in results["switches"]} == {"eager", "CUDA graph"}
        assert replays
        replays.clear()
