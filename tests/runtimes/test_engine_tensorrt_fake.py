"""The made-up GPU against the real packages: every name that it offers is theirs, with the same arguments; and what the
real packages say on a machine without a GPU."""

from __future__ import annotations

import enum
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import fake_cuda
import fake_tensorrt
import pytest
from built_engines import build_engines
from tensorrt_cases import TinyBundle

from nsn_edge.bundle import Bundle
from nsn_edge.bundle.engine_record import EngineDevice
from nsn_edge.errors import EngineError, StaleEngineError
from nsn_edge.export.tensorrt.build import build, plan_build
from nsn_edge.export.tensorrt.library import Library as BuildLibrary
from nsn_edge.export.tensorrt.plan import BuildConfig
from nsn_edge.runtimes.engines import TensorRtEngine
from nsn_edge.runtimes.engines.tensorrt.cuda import Cuda
from nsn_edge.runtimes.engines.tensorrt.library import Library

trt = pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx has wheels for Linux and Windows on x86-64")
cudart = pytest.importorskip("cuda.bindings.runtime", reason="needs the package cuda-bindings")

_HELPERS = {"numpy_type", "output_shapes", "compute"}
"""Methods of the fakes that are no part of the API: of no underscore, as other fakes call them."""
_FAKES = ("Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeConfig", "IRuntimeCache", "ILogger")
_ENUMS = (
    "DataType",
    "TensorIOMode",
    "TensorLocation",
    "ExecutionContextAllocationStrategy",
    "CudaGraphStrategy",
)


def overloads(documentation: str, name: str) -> list[list[str]]:
    """Argument names of every overload, `self` left out, as pybind11 writes them down."""
    found = re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> ", documentation, re.MULTILINE)
    return [
        [part.partition(":")[0].strip() for part in re.split(r", (?=\w+: )", text) if not part.startswith("self")]
        for text in found
    ]


def own_names(fake: type) -> Iterator[str]:
    for name in vars(fake):
        if not name.startswith("_") and name not in _HELPERS:
            yield name


def attributes_set_in_init(fake: type) -> set[str]:
    source = inspect.getsource(fake.__init__)
    return set(re.findall(r"self\.([a-z][a-z_]*\w*)\b(?=[^=(\n]*=[^=])", source))


@pytest.mark.parametrize("name", _FAKES)
def test_every_method_of_the_fake_library_is_one_of_the_real(name: str) -> None:
    fake, real = getattr(fake_tensorrt, name), getattr(trt, name)
    compared = 0
    for member in own_names(fake):
        assert hasattr(real, member), f"{name}.{member}"
        value = inspect.getattr_static(fake, member)
        if not inspect.isfunction(value) or member == "log":
            continue
        mine = [*inspect.signature(value).parameters][1:]
        theirs = overloads(getattr(real, member).__doc__, member)
        assert theirs, f"{name}.{member} has no signature"
        assert any(len(mine) <= len(arguments) and mine == arguments[: len(mine)] for arguments in theirs), (
            f"{name}.{member}{mine} against {theirs}"
        )
        compared += 1
    assert compared or name == "ILogger"


@pytest.mark.parametrize("name", _FAKES)
def test_every_attribute_that_our_code_reads_exists(name: str) -> None:
    """Those that a fake sets when it is made; its own bookkeeping is listed."""
    bookkeeping = {
        "lib",
        "device",
        "session",
        "inputs",
        "outputs",
        "profiles_in_use",
        "engine",
        "captures",
        "logger",
        "is_made",
    }
    for attribute in attributes_set_in_init(getattr(fake_tensorrt, name)) - bookkeeping:
        assert hasattr(getattr(trt, name), attribute), f"{name}.{attribute}"
    for attribute in ("num_io_tensors", "num_optimization_profiles", "device_memory_size_v2"):
        assert hasattr(trt.ICudaEngine, attribute)
    assert hasattr(trt.IRuntimeConfig, "cuda_graph_strategy")
    assert hasattr(trt.IExecutionContext, "active_optimization_profile")


@pytest.mark.parametrize("name", _ENUMS)
def test_every_member_of_an_enumeration_is_one_of_the_real(name: str) -> None:
    real = getattr(trt, name)
    for member in getattr(fake_tensorrt, name):
        assert int(getattr(real, member.name)) == member.value
        assert getattr(real, member.name).name == member.name


def test_severities_are_the_real_ones() -> None:
    for member in fake_tensorrt.Severity:
        assert int(getattr(trt.ILogger, member.name)) == member.value


def test_every_call_of_the_fake_runtime_is_one_of_cudas() -> None:
    calls = [name for name in vars(fake_cuda.FakeCuda) if name.startswith("cuda")]
    assert len(calls) > 25
    for name in calls:
        fake, real = inspect.getattr_static(fake_cuda.FakeCuda, name), getattr(cudart, name)
        if not inspect.isfunction(fake):
            continue
        (line, *_) = real.__doc__.splitlines()
        inside = re.fullmatch(rf"{name}\((.*)\)", line)
        assert inside is not None, line
        theirs = [part.partition(":")[0].split()[-1] for part in inside[1].split(", ") if part]
        assert [*inspect.signature(fake).parameters][1:] == theirs, name


@pytest.mark.parametrize("name", ["cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode"])
def test_cudas_numbers_are_the_real_ones(name: str) -> None:
    fake: type[enum.IntEnum] = getattr(fake_cuda, name)
    for member in fake:
        assert int(getattr(getattr(cudart, name), member.name)) == member
    assert cudart.cudaStreamNonBlocking == fake_cuda.FakeCuda.cudaStreamNonBlocking


# --- the real packages, on a machine without a GPU -----------------------------------------------------------------


def without_gpu(test: Callable[..., None]) -> Callable[..., None]:
    code, _ = cudart.cudaGetDeviceCount()
    return pytest.mark.skipif(int(code) == 0, reason="this machine has a GPU")(test)


@without_gpu
def test_the_real_bindings_take_what_we_give_them() -> None:
    """Plain integers for addresses and streams, their own objects for graphs: an error code, and no TypeError."""
    cuda = Cuda(cudart, 0, EngineDevice("none", "0.0"))
    graph, executable, stream, address = cudart.cudaGraph_t(), cudart.cudaGraphExec_t(), 5, 1 << 40
    calls: list[Callable[[], Any]] = [
        cuda.activate,
        lambda: cuda.allocate(100),
        lambda: cuda.allocate_pinned(100),
        lambda: cuda.free(address),
        lambda: cuda.free_pinned(address),
        lambda: cuda.to_device(address, address, 8, stream),
        lambda: cuda.to_host(address, address, 8, stream),
        lambda: cuda.read(address, address, 8),
        cuda.new_stream,
        lambda: cuda.synchronise(stream),
        lambda: cuda.free_stream(stream),
        lambda: cuda.begin_capture(stream),
        lambda: cuda.end_capture(stream),
        lambda: cuda.launch(executable, stream),
        lambda: cuda.free_graph(executable),
    ]
    for call in calls:
        with pytest.raises(EngineError, match=r"^CUDA cannot .+: .+ \(cudaError\w+\)"):
            call()
    cuda.abandon_capture(stream)
    assert int(cudart.cudaGraphInstantiateWithFlags(graph, 0)[0])
    assert int(cudart.cudaGraphDestroy(graph)[0])


@without_gpu
def test_the_real_bindings_without_a_gpu() -> None:
    with pytest.raises(EngineError) as caught:
        Cuda.open()
    assert "\n" not in str(caught.value)
    assert re.search("no NVIDIA driver|finds no GPU|NVIDIA driver knows", str(caught.value))


@without_gpu
def test_the_engine_of_the_real_library_without_a_gpu(tiny_bundle: TinyBundle) -> None:
    build_engines(tiny_bundle[0], "tensorrt-rtx")
    with pytest.raises(EngineError) as caught:
        TensorRtEngine("tensorrt-rtx").load(tiny_bundle[0] / "rank-005.onnx")
    assert "\n" not in str(caught.value)
    assert re.search("no NVIDIA driver|finds no GPU|NVIDIA driver knows", str(caught.value))


def test_what_the_real_runtime_says_to_rubbish_is_one_line() -> None:
    library = Library.of("tensorrt-rtx")
    with pytest.raises(EngineError) as caught:
        library.deserialised(library.runtime(), b"rubbish", "rank-064-fp32.engine", "build it again")
    message = str(caught.value)
    assert message.startswith("tensorrt-rtx cannot load rank-064-fp32.engine: Error Code 2: Internal Error (Assertion")
    assert message.endswith("(build it again)")
    assert "/_src/" not in message
    assert "\n" not in message


@without_gpu
def test_engines_that_were_really_built_are_found_checked_and_given_to_the_real_library(
    tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny_bundle[0]
    build(plan_build(Bundle.open(path), BuildLibrary.load("tensorrt_rtx"), BuildConfig(ranks=(5, 16))))
    gpu = fake_cuda.FakeCuda(devices=(("NVIDIA GeForce RTX 4070", 8, 9),))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", gpu)  # the one thing that is made up here
    engine = TensorRtEngine("tensorrt-rtx")
    for name in ("rank-005", "rank-016"):
        with pytest.raises(EngineError) as caught:
            engine.load(path / f"{name}.onnx")
        assert str(caught.value).startswith(f"tensorrt-rtx cannot load {name}-fp32.engine: ")
        assert re.search(r"Cuda Runtime \(cudaError \d+: [^)]+\) \(build it again: [^)]+\)$", str(caught.value))
    assert not caplog.records, "nothing of it was printed besides"
    assert gpu.is_clean
    with pytest.raises(StaleEngineError, match="no engine"):
        engine.load(path / "rank-002.onnx")


def test_the_real_library_has_what_ours_asks_for() -> None:
    library = Library.of("tensorrt-rtx")
    assert library.captures_itself
    assert library.shares_profiles
    assert library.version == trt.__version__
    assert (library.name, library.backend) == ("tensorrt_rtx", "tensorrt-rtx")
