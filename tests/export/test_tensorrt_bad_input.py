"""What cannot be built says so in one line, and whatever is stopped leaves nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper
from real_engines import SMALL, built, rtx
from tiny_bundle import TinyModel, sign, write_tiny_bundle

from nsn_edge.bundle import Bundle
from nsn_edge.bundle.engines import EngineDevice, record_path
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.errors import EngineError, MissingDependencyError, NsnEdgeError, RankError, UsageError
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.export.graph import Graph
from nsn_edge.export.tensorrt import build as build_module
from nsn_edge.export.tensorrt import gpu
from nsn_edge.export.tensorrt.build import build, plan_build
from nsn_edge.export.tensorrt.checks import Room, check_room, memory_bytes
from nsn_edge.export.tensorrt.library import Library
from nsn_edge.export.tensorrt.plan import UNREAD_OPERATORS, BuildConfig, plan_jobs
from nsn_edge.export.tensorrt.shapes import SizeRange, check_sizes

SIZES = {"batch_size": SizeRange(1, 1, 4)}
ONE = BuildConfig(sizes=SIZES, ranks=(5,))


@pytest.fixture
def bundle(tiny_bundle: tuple[Path, TinyModel]) -> Bundle:
    return Bundle.open(tiny_bundle[0])


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


# A graph, a profile, a library that is not there


def test_a_graph_that_the_parser_refuses(bundle: Bundle) -> None:
    graph = onnx.load(bundle.path / "rank-005.onnx", load_external_data=False)
    (last,) = [node for node in graph.graph.node if node.output[0] == "y"]
    last.CopyFrom(helper.make_node("NoSuchOperator", list(last.input), ["y"], name="the_culprit"))
    onnx.save(graph, bundle.path / "rank-005.onnx")
    sign(bundle.path)
    with pytest.raises(EngineError) as caught:
        build(plan_build(Bundle.open(bundle.path), rtx(), ONE))
    assert "TensorRT-RTX refuses rank-005.onnx at node 'the_culprit' (NoSuchOperator): " in caught.value.message
    assert "\n" not in str(caught.value)
    assert not (bundle.path / "engines").exists()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantised_graphs_are_refused_for_what_the_parser_does_not_read(
    precision: str, bert_checkpoint: Checkpoint, bert_graph: Graph, tmp_path: Path
) -> None:
    config = ExportConfig(fractions=(), ranks=(8,), precision=precision)
    quantised = export_bundle(bert_checkpoint, tmp_path / "b", config, graph=bert_graph)
    operators = UNREAD_OPERATORS[precision]
    with pytest.raises(UsageError) as caught:
        plan_jobs(quantised, BuildConfig())
    assert f"rank-008.onnx is {precision}, and engines" in caught.value.message
    assert f"TensorRT's parser does not read {' or '.join(operators)}" in caught.value.message
    assert "--precision fp16" in caught.value.hint
    library = rtx()
    builder = library.module.Builder(library.logger)
    flag = 1 << int(library.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flag)  # which the parser does not keep alive
    parser = library.module.OnnxParser(network, library.logger)
    with library.messages.kept():
        assert not parser.parse_from_file(str(quantised.file(quantised.graph(8))))
    refused = {parser.get_error(number).node_operator() for number in range(parser.num_errors)}
    assert refused == set(operators)


def test_weights_that_the_parser_does_not_find(bundle: Bundle) -> None:
    (bundle.path / "weights.bin").unlink()
    with pytest.raises(EngineError, match=r"refuses rank-005\.onnx"):
        build(plan_build(bundle, rtx(), ONE))


def test_sizes_that_the_graph_cannot_take(wide_bundle: Bundle, tmp_path: Path) -> None:
    """Known to the builder alone where the manifest does not say how long an input may be."""
    from dataclasses import replace

    task = replace(wide_bundle.manifest.task, max_length=None)
    unknown = Bundle(wide_bundle.path, replace(wide_bundle.manifest, task=task))
    with pytest.raises(EngineError, match="could not build rank-040-fp32") as caught:
        built(unknown, tmp_path, sizes={"sequence_length": SizeRange(1, 64, 64)}, ranks=(40,))
    assert "lower --sequence" in caught.value.hint
    assert files(tmp_path) == []


def test_an_input_that_no_profile_names(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="nothing says how large the dimension 'batch_size'"):
        check_sizes(bundle.manifest, {})


def test_profiles_that_exclude_a_rung(wide_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="end at rank 40 and exclude the rungs 120, 128") as caught:
        plan_jobs(wide_bundle, BuildConfig(kinds=("dynamic",), ranks=(40,)))
    assert caught.value.hint.startswith("add --rank 128")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (BuildConfig(ranks=(41,)), "no rung at rank 41"),
        (BuildConfig(ranks=(200,)), "rank 200"),
        (BuildConfig(sizes={"sequence_length": SizeRange(1, 16, 64)}), "the model takes 32 at most"),
        (BuildConfig(sizes={"sequence_length": SizeRange(0, 16, 32)}), "sequence_length begins at 0"),
        (BuildConfig(sizes={"height": SizeRange(1, 1, 1)}), "has no dimension 'height'"),
        (BuildConfig(decode_profile=True), "keeps no cache"),
    ],
)
def test_what_the_bundle_cannot_give(wide_bundle: Bundle, config: BuildConfig, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_jobs(wide_bundle, config)


def test_a_rank_without_a_rung_is_a_rank_error(wide_bundle: Bundle) -> None:
    with pytest.raises(RankError):
        plan_jobs(wide_bundle, BuildConfig(ranks=(41,)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kinds": ("layer",)}, "unknown kind of engine 'layer'"),
        ({"kinds": ()}, "no kind of engine"),
        ({"precision": "int3"}, "unknown precision 'int3'"),
        ({"level": 6}, "0 to 5, not 6"),
        ({"workspace_mb": 0}, "a workspace of 0 MB"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BuildConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "a", "1:2", "1:2:3:4", "3:2:1", "-1:1:1", "1:1.5:2"])
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="MIN:OPT:MAX"):
        SizeRange.parse(text)


def test_half_precision_does_not_become_single(bundle: Bundle) -> None:
    manifest = (bundle.path / "manifest.json").read_text().replace('"fp32"', '"fp16"')
    (bundle.path / "manifest.json").write_text(manifest)
    half = Bundle.open(bundle.path)
    assert [job.precision for job in plan_jobs(half, ONE)] == ["fp16"]
    with pytest.raises(UsageError, match="is fp16, and cannot become fp32"):
        plan_jobs(half, BuildConfig(sizes=SIZES, precision="fp32"))


@pytest.mark.parametrize(("name", "words"), [("tensorrt", "JetPack brings it"), ("tensorrt_rtx", "nsn-edge[rtx]")])
def test_no_tensorrt(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match="not installed") as caught:
        Library.load(name)
    assert words in caught.value.hint


def test_a_tensorrt_that_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match=r"TensorRT is installed and cannot be imported: libnvinfer\.so\.10"):
        Library.load("tensorrt")


@pytest.mark.parametrize("asked", ["sm87", "sm9", "8.6", "orin", "sm80+x"])
def test_a_gpu_that_tensorrt_rtx_does_not_build_for(bundle: Bundle, asked: str) -> None:
    with pytest.raises(UsageError, match=r"builds for sm80\+, sm75, sm80, sm86, .*not for"):
        plan_build(bundle, rtx(), ONE, device=asked)


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_DRIVER", "libcuda-of-nobody.so.1")
    assert gpu.current_gpu() is None
    assert rtx().device(None).sm == "sm80+"


class _Driver:
    """The CUDA driver's library, as far as it is asked: an RTX 3060, or a GPU that does not answer."""

    def __init__(self, failing: str | None = None) -> None:
        self.failing = failing

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            if name == self.failing:
                return 100  # CUDA_ERROR_NO_DEVICE
            if name == "cuDeviceGetName":
                arguments[0].value = b"NVIDIA GeForce RTX 3060"
            if name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 6}[arguments[1]]
            return 0

        return call


def test_the_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda name: _Driver())
    assert gpu.current_gpu() == EngineDevice("NVIDIA GeForce RTX 3060", "8.6")
    # TensorRT-RTX's engines are of a kind of GPU.
    assert rtx().device(None) == EngineDevice.kind("8.6")


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"])
def test_a_driver_that_fails(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda name: _Driver(call))
    assert gpu.current_gpu() is None


# Engines that are there and are not good: built again, for the reason that is said


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("cut", "it was cut or altered"),
        ("altered", "is not what was built"),
        ("gone", "no engine at"),
        ("no record", "never finished"),
        ("bad record", "is not readable"),
        ("options", "other options: workspace_mb"),
        ("shapes", "other options: sizes"),
        ("bundle", "another bundle"),
        ("version", "was built by tensorrt_rtx 1.0, and"),
        ("forced", "asked to"),
    ],
)
def test_a_stale_engine_is_built_again(bundle: Bundle, tmp_path: Path, harm: str, reason: str) -> None:
    root = tmp_path / "engines"
    (first,) = built(bundle, root, sizes=SIZES, ranks=(5,))
    (again,) = built(bundle, root, sizes=SIZES, ranks=(5,))
    assert (first.built, first.reason, again.built) == (True, "not built yet", False)
    path, record = first.stored.path, record_path(first.stored.path)
    data, config = path.read_bytes(), {"sizes": SIZES, "ranks": (5,)}
    if harm == "cut":
        path.write_bytes(data[:-1])
    elif harm == "altered":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif harm == "gone":
        path.unlink()
    elif harm == "no record":
        record.unlink()
    elif harm == "bad record":
        record.write_text("{")
    elif harm == "options":
        config["workspace_mb"] = 64
    elif harm == "shapes":
        config["sizes"] = {"batch_size": SizeRange(1, 1, 5)}
    elif harm == "bundle":
        write_tiny_bundle(bundle.path, seed=1)
        bundle = Bundle.open(bundle.path)
    elif harm == "version":
        record.write_text(record.read_text().replace(rtx().version, "1.0"))
    (second,) = built(bundle, root, force=harm == "forced", **config)
    assert second.built
    assert reason in second.reason
    (third,) = built(bundle, root, **config)
    assert not third.built


# Room


def test_too_little_memory(bundle: Bundle) -> None:
    plan = plan_build(bundle, rtx(), ONE)
    (job,) = plan.jobs
    check_room([job], Room(memory_bytes(job), job.expected_bytes), plan.folder)
    with pytest.raises(NsnEdgeError, match=r"building rank-005-fp32 takes about \d+ MB of memory, and 1 MB are free"):
        build(plan, room=Room(1_000_000, 10**12))
    assert not plan.folder.exists()


def test_too_little_disk(bundle: Bundle) -> None:
    plan = plan_build(bundle, rtx(), BuildConfig(sizes=SIZES))
    with pytest.raises(NsnEdgeError, match=r"4 engines would take about 64 MB, and 20 MB are free in .*engines"):
        build(plan, room=Room(None, 20_000_000))
    assert not plan.folder.exists()


def test_nothing_to_build_needs_no_room(bundle: Bundle) -> None:
    build(plan_build(bundle, rtx(), ONE))
    (kept,) = build(plan_build(bundle, rtx(), ONE), room=Room(0, 0))
    assert not kept.built


def test_the_room_of_a_machine(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\n")
    assert Room.here(tmp_path / "not" / "there", tmp_path).memory_bytes == 8_000_000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert Room.here(tmp_path, tmp_path).memory_bytes == 8_000_000 * 1024
    (group / "memory.max").write_text("2000000000\n")
    (group / "memory.current").write_text("1500000000\n")
    (group / "memory.stat").write_text("anon 500000000\ninactive_file 600000000\nactive_file 100000000\n")
    assert Room.here(tmp_path, tmp_path).memory_bytes == 1_200_000_000
    assert Room.here(tmp_path, tmp_path / "nothing").memory_bytes is None
    assert Room.here(tmp_path).disk_bytes > 0


def test_a_disk_that_fills_up(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "engines"
    (first,) = built(bundle, root, sizes=SIZES, ranks=(5,))
    before = first.stored.path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NsnEdgeError, match="no space left on the disk"):
        built(bundle, root, sizes=SIZES, ranks=(5,), force=True)
    assert first.stored.path.read_bytes() == before
    assert files(first.stored.path.parent) == ["rank-005-fp32.engine", "rank-005-fp32.json"]


def test_a_folder_that_cannot_be_written(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    with pytest.raises(NsnEdgeError, match="cannot write"):
        built(bundle, tmp_path / "a file", sizes=SIZES, ranks=(5,))


# Interrupts


def test_an_interrupt_stops_the_builder_and_leaves_nothing(wide_bundle: Bundle, tmp_path: Path) -> None:
    """It comes from outside while the library's builder is at work in its own thread."""
    before = threading.active_count()
    heard: list[int] = []

    def interrupt(stage: str, done: int, total: int) -> None:
        heard.append(done)
        if len(heard) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    plan = plan_build(wide_bundle, rtx(), BuildConfig(sizes=SMALL, ranks=(40,)), device="sm86", root=tmp_path)
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # see `test_ctrl_c_ends_the_command`
    try:
        with pytest.raises(KeyboardInterrupt):
            build(plan, progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, ignored)
    for thread in threading.enumerate():
        if thread.name == "engine-builder":
            thread.join(10)
    assert threading.active_count() == before
    assert files(tmp_path) == []
    assert build(plan)[0].built


def test_a_listener_that_fails_is_heard(wide_bundle: Bundle, tmp_path: Path) -> None:
    def fail(stage: str, done: int, total: int) -> None:
        if done:
            raise BrokenPipeError("the reader went away")

    plan = plan_build(wide_bundle, rtx(), BuildConfig(sizes=SMALL, ranks=(40,)), device="sm86", root=tmp_path)
    with pytest.raises(BrokenPipeError):
        build(plan, progress=fail)
    assert files(tmp_path) == []


def test_engines_that_were_finished_stay(wide_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = build_module.build_engine, []

    def once(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(build_module, "build_engine", once)
    with pytest.raises(KeyboardInterrupt):
        built(wide_bundle, tmp_path)
    assert [Path(name).name for name in files(tmp_path)] == ["rank-040-fp32.engine", "rank-040-fp32.json"]
    monkeypatch.undo()
    assert [engine.built for engine in built(wide_bundle, tmp_path)] == [False, True, True]


def test_ctrl_c_ends_the_command(wide_bundle: Bundle, tmp_path: Path) -> None:
    """As a user does it, with the shell's exit code and one line."""
    rtx()
    line = [sys.executable, "-m", "nsn_edge", "build", str(wide_bundle.path), "--backend", "tensorrt-rtx"]
    line += ["--kind", "dynamic", "--kind", "rung", "--engines", str(tmp_path)]
    # Whoever runs the tests in the background of a shell ignores Ctrl-C, and children inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    assert process.stderr is not None
    first = process.stderr.readline()  # the build has begun
    assert first.startswith("build, percent of each engine: 0/")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "nsn-edge: interrupted; nothing half-written was left behind"
    engines = {Path(name).stem for name in files(tmp_path) if name.endswith(".engine")}
    records = {Path(name).stem for name in files(tmp_path) if name.endswith(".json")}
    assert engines == records
    assert all(Path(name).suffix in (".engine", ".json") for name in files(tmp_path))
