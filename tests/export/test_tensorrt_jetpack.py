"""What JetPack's TensorRT differs in: flags, timing cache, no progress, the GPU that is here. The builder is real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jetpack import JetPack
from real_engines import rtx
from tiny_bundle import TinyModel

from nsn_edge import nvidia
from nsn_edge.bundle import Bundle
from nsn_edge.bundle.engines import EngineDevice
from nsn_edge.errors import EngineError, UsageError
from nsn_edge.export.tensorrt import library as library_module
from nsn_edge.export.tensorrt.build import BuiltEngine, build, plan_build
from nsn_edge.export.tensorrt.library import Library
from nsn_edge.export.tensorrt.plan import BuildConfig
from nsn_edge.export.tensorrt.shapes import SizeRange

ORIN = EngineDevice("Orin", "8.7")
SIZES = {"batch_size": SizeRange(1, 1, 4)}
Build = Callable[..., list[BuiltEngine]]


@pytest.fixture
def bundle(tiny_bundle: tuple[Path, TinyModel]) -> Bundle:
    return Bundle.open(tiny_bundle[0])


@pytest.fixture
def jetpack(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> JetPack:
    """On an Orin."""
    rtx()
    fake = JetPack(getattr(request, "param", "10.3.0"))
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", fake)
    monkeypatch.setattr(library_module, "current_gpu", lambda: ORIN)
    # One logger per process is all that the library takes.
    monkeypatch.setitem(nvidia._messages, fake, rtx().messages)
    return fake


def built(bundle: Bundle, config: BuildConfig | None = None, **how: Any) -> list[BuiltEngine]:
    plan = plan_build(bundle, Library.load("tensorrt"), config or BuildConfig(sizes=SIZES, ranks=(5,)), force=True)
    return build(plan, **how)


@pytest.mark.parametrize("jetpack", ["8.5.2", "8.6.2", "10.3.0"], indirect=True)
def test_engines_are_those_of_the_gpu(jetpack: JetPack, bundle: Bundle) -> None:
    (engine,) = built(bundle, BuildConfig(kinds=("dynamic",), sizes=SIZES))
    record = engine.stored.record
    assert (record.library, record.library_version, record.device) == ("tensorrt", jetpack.__version__, ORIN)
    assert engine.stored.path.parent == bundle.path / "engines" / f"tensorrt-{jetpack.__version__}-orin-sm87"
    assert jetpack.calls.network_flags == [1 if jetpack.__version__.startswith("8") else 0]


@pytest.mark.parametrize("jetpack", ["8.5.2", "10.3.0"], indirect=True)
@pytest.mark.parametrize(("precision", "flags"), [("fp32", set()), ("tf32", {"TF32"}), ("fp16", {"TF32", "FP16"})])
def test_precision_is_a_flag(jetpack: JetPack, bundle: Bundle, precision: str, flags: set[str]) -> None:
    jetpack.calls.flags.add("TF32")  # as the library begins
    built(bundle, BuildConfig(sizes=SIZES, ranks=(5,), precision=precision))
    assert jetpack.calls.flags == flags


@pytest.mark.parametrize("jetpack", ["8.5.2"], indirect=True)
def test_what_old_versions_lack(jetpack: JetPack, bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"TensorRT 8\.5\.2 has no bf16"):
        built(bundle, BuildConfig(sizes=SIZES, precision="bf16"))
    with pytest.raises(UsageError, match=r"TensorRT 8\.5\.2 has no optimization level"):
        built(bundle, BuildConfig(sizes=SIZES, level=3))
    assert not (bundle.path / "engines").exists()


@pytest.mark.parametrize(("jetpack", "told"), [("8.5.2", [0, 100]), ("10.3.0", None)], indirect=["jetpack"])
def test_progress_is_told_where_there_is_any(jetpack: JetPack, bundle: Bundle, told: list[int] | None) -> None:
    heard: list[int] = []
    built(bundle, progress=lambda stage, done, total: heard.append(done))
    assert heard == sorted(heard)
    assert (heard[0], heard[-1]) == (0, 100)
    assert heard == told if told else len(heard) > 3


def test_the_timing_cache_is_kept(jetpack: JetPack, bundle: Bundle) -> None:
    two = BuildConfig(sizes=SIZES, ranks=(2, 5))
    engines = built(bundle, two)
    file = engines[0].stored.path.parent / "timing.cache"
    assert file.read_bytes() == b"++"
    built(bundle, two)
    assert jetpack.calls.caches == [b"", b"+", b"++", b"+++"]


def test_a_timing_cache_of_another_device_is_begun_anew(jetpack: JetPack, bundle: Bundle) -> None:
    file = built(bundle)[0].stored.path.parent / "timing.cache"
    file.write_bytes(b"of another device")
    jetpack.refuses_caches = True
    built(bundle)
    assert jetpack.calls.caches == [b"", b""]
    assert file.read_bytes() == b"+"


def test_the_timing_cache_can_be_left_out(jetpack: JetPack, bundle: Bundle) -> None:
    engines = built(bundle, timing_cache=False)
    assert jetpack.calls.caches == []
    assert not (engines[0].stored.path.parent / "timing.cache").exists()


def test_tensorrt_rtx_has_none(bundle: Bundle, tmp_path: Path) -> None:
    plan = plan_build(bundle, rtx(), BuildConfig(sizes=SIZES, ranks=(5,)), device="sm86", root=tmp_path)
    build(plan)
    assert not list(tmp_path.rglob("timing.cache"))


def test_another_gpu_than_the_one_here(jetpack: JetPack, bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"builds for the GPU that is here, Orin \(sm87\), not for sm86"):
        plan_build(bundle, Library.load("tensorrt"), BuildConfig(sizes=SIZES), device="sm86")


def test_without_a_gpu(jetpack: JetPack, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_module, "current_gpu", lambda: None)
    with pytest.raises(EngineError, match="no NVIDIA GPU answers here") as caught:
        plan_build(bundle, Library.load("tensorrt"), BuildConfig(sizes=SIZES))
    assert "--backend tensorrt-rtx" in caught.value.hint
