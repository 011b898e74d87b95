"""A grid of configurations: what is kept after each, how a run goes on, what it refuses, and whose profile it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from timed_engine import FakeEngine

from nsn_edge.bundle import Bundle
from nsn_edge.errors import EngineError, NsnEdgeError, UsageError
from nsn_edge.runtimes.profiling import (
    DeviceProfile,
    Host,
    Keeper,
    MeasureSettings,
    Profile,
    ProfileSettings,
    default_profile_path,
    device_key,
    grid,
    profile_device,
    same_device,
    same_engine,
    stored_profile,
)

HOST = Host(cpu="Some CPU", architecture="x86_64", cores=4)
FEW = MeasureSettings(warmup=1, min_repetitions=10, min_time_s=0.0)


def cells(
    batches: tuple[int, ...] = (1, 3), forms: tuple[str, ...] = ("static", "sliced"), lengths: tuple[int, ...] = (4,)
) -> tuple[ProfileSettings, ...]:
    return grid(ProfileSettings(measure=FEW), forms=forms, batch_sizes=batches, sequence_lengths=lengths)


def measured(path: Path, engine: FakeEngine, keeper: Keeper | None = None, **changes: Any) -> DeviceProfile:
    arguments: dict[str, Any] = {"cells": cells(), "host": lambda: HOST, **changes}
    return profile_device(
        Bundle.open(path), engine, arguments.pop("cells"), keeper=keeper, clock=engine.clock, **arguments
    )


def test_every_combination_once_in_order(tiny_bundle: tuple[Path, Any], tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "profile.json")
    stages: list[str] = []
    found = measured(
        tiny_bundle[0], FakeEngine(), keeper, cells=cells((1, 3, 1)), progress=lambda stage, *_: stages.append(stage)
    )
    there = [(p.settings["form"], p.settings["batch_size"]) for p in found.configurations]
    assert there == [("static", 1), ("static", 3), ("sliced", 1), ("sliced", 3)]
    assert found.complete
    assert found.device == "some-cpu_4c_fake_1t"
    assert "4/4 sliced, batch 3, sequence 4: load" in stages
    assert DeviceProfile.load(keeper.target) == found
    assert not keeper.partial.exists()
    # The first is what whoever wants one gets; any can be asked for.
    assert Profile.load(keeper.target) == found.first
    assert Profile.load(keeper.target, form="sliced", batch_size=3) == found.configurations[3]
    with pytest.raises(UsageError, match=r"no configuration with batch_size 8") as caught:
        Profile.load(keeper.target, batch_size=8)
    assert "static, batch 3, sequence 4" in caught.value.hint


def interrupt_at(call: int, error: type[BaseException] = KeyboardInterrupt) -> Any:
    """What `before_run` must be for the engine to be broken off at its n-th call."""
    calls = [0]

    def before_run(rank: int, inputs: Mapping[str, Any]) -> None:
        calls[0] += 1
        if calls[0] == call:
            raise error("broken off")

    return before_run


def test_an_interrupted_run_keeps_what_it_has_and_goes_on(tiny_bundle: tuple[Path, Any], tmp_path: Path) -> None:
    whole = FakeEngine()
    expected = measured(tiny_bundle[0], whole)
    target = tmp_path / "profile.json"
    target.write_text("an older profile")
    broken = FakeEngine(before_run=interrupt_at(len(whole.seen) * 5 // 8))
    with pytest.raises(KeyboardInterrupt):
        measured(tiny_bundle[0], broken, Keeper(target))
    kept = DeviceProfile.load(Keeper(target).partial)
    assert (len(kept.configurations), kept.complete) == (2, False)
    assert target.read_text() == "an older profile"
    assert broken.open_graphs == 0
    second = FakeEngine()
    found = measured(tiny_bundle[0], second, Keeper(target))
    assert len(second.seen) == len(whole.seen) / 2
    assert [p.configuration for p in found.configurations] == [p.configuration for p in expected.configurations]
    assert found.configurations[:2] == kept.configurations
    assert DeviceProfile.load(target) == found
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("profile")] == ["profile.json"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"host": lambda: Host(cpu="Another CPU", cores=4)}, "device or engine"),
        ({"cells": cells((1, 2))}, "configurations"),
        ({"ranks": [2, 5]}, "ranks"),
        (
            {
                "cells": grid(
                    ProfileSettings(measure=MeasureSettings(warmup=2, min_repetitions=10, min_time_s=0.0)),
                    forms=("static", "sliced"),
                    batch_sizes=(1, 3),
                    sequence_lengths=(4,),
                )
            },
            "measure",
        ),
    ],
)
def test_another_run_is_refused_with_the_reason(
    tiny_bundle: tuple[Path, Any], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    target = tmp_path / "profile.json"
    with pytest.raises(KeyboardInterrupt):
        measured(tiny_bundle[0], FakeEngine(before_run=interrupt_at(100)), Keeper(target))
    engine = FakeEngine()
    with pytest.raises(UsageError) as caught:
        measured(tiny_bundle[0], engine, Keeper(target), **change)
    assert caught.value.message.endswith(f"profile.json.partial is of an interrupted run that differs in {says}")
    assert "--restart" in caught.value.hint
    assert not engine.seen
    assert measured(tiny_bundle[0], engine, Keeper(target, restart=True), **change).complete


def test_another_bundle_is_refused(tiny_bundle: tuple[Path, Any], tmp_path: Path) -> None:
    from tiny_bundle import write_tiny_bundle

    target = tmp_path / "profile.json"
    with pytest.raises(KeyboardInterrupt):
        measured(tiny_bundle[0], FakeEngine(before_run=interrupt_at(100)), Keeper(target))
    write_tiny_bundle(tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match="differs in bundle"):
        measured(tmp_path / "other", FakeEngine(), Keeper(target))


def test_a_damaged_rest_is_named(tiny_bundle: tuple[Path, Any], tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "profile.json")
    keeper.partial.write_text('{"kind": "pro')
    with pytest.raises(NsnEdgeError, match=r"profile\.json\.partial is not readable") as caught:
        measured(tiny_bundle[0], FakeEngine(), keeper)
    assert "--restart" in caught.value.hint


def test_what_cannot_be_is_said_before_anything_is_measured(
    tiny_bundle: tuple[Path, Any], text_bundle: tuple[Path, Any]
) -> None:
    engine = FakeEngine()
    with pytest.raises(UsageError, match="gated"):
        measured(tiny_bundle[0], engine, cells=cells(forms=("static", "gated")))
    with pytest.raises(UsageError, match="a sequence of 9 is longer than the 8"):
        measured(text_bundle[0], engine, cells=cells(lengths=(4, 9)))
    with pytest.raises(UsageError, match="nothing to measure"):
        cells(())
    assert engine.loads == 0


def test_a_configuration_that_fails_does_not_take_the_others(tiny_bundle: tuple[Path, Any], tmp_path: Path) -> None:
    def too_large(rank: int, inputs: Mapping[str, Any]) -> None:
        if inputs["x"].shape[0] == 3:
            raise EngineError("out of memory")

    found = measured(tiny_bundle[0], FakeEngine(before_run=too_large), Keeper(tmp_path / "profile.json"))
    assert [p.settings["batch_size"] for p in found.configurations] == [1, 1]
    assert [(item.configuration["batch_size"], item.error) for item in found.failed] == [(3, "out of memory")] * 2
    assert found.complete
    assert DeviceProfile.load(tmp_path / "profile.json") == found
    with pytest.raises(EngineError, match="out of memory"):
        measured(tiny_bundle[0], FakeEngine(before_run=too_large), cells=cells((3,), ("static",)))
    with pytest.raises(EngineError, match="no configuration could be measured: out of memory"):
        measured(tiny_bundle[0], FakeEngine(before_run=too_large), cells=cells((3,)))


def test_first_runs_memory_and_turns(tiny_bundle: tuple[Path, Any]) -> None:
    engine = FakeEngine()
    (found,) = measured(tiny_bundle[0], engine, cells=cells((1,), ("static",))).configurations
    for rung in found.rungs:
        assert rung.first_run_ms == pytest.approx(engine.run_ms[rung.rank])
        assert rung.turns_ms == pytest.approx((engine.run_ms[rung.rank],) * 2)
        assert rung.memory_mb is None or rung.memory_mb < 100
    assert found.memory is not None
    assert found.memory.device_mb is None
    if found.memory.peak_is_own:
        assert found.peak_memory_mb is not None
        # The kernel counts pages in batches by thread: a megabyte more or less.
        assert found.peak_memory_mb >= (found.memory.before_mb or 0.0) - 1.0


def test_the_same_device_and_what_tells_another() -> None:
    here = Host(machine="Orin", cpu="Cortex", architecture="aarch64", cores=6)
    assert same_device(here.to_json(), here) == ()
    assert same_device(Host(cpu="Cortex").to_json(), here) == ()  # what one does not know is no difference
    assert same_device(Host(cpu="Xeon", cores=6, machine="Orin").to_json(), here) == ("cpu 'Xeon', here 'Cortex'",)
    assert same_device({}, here) == ("it does not say what it was measured on",)
    assert same_device({**here.to_json(), "kernel": "6.1", "load_1m": 3.0}, here) == ()  # nor what changes by itself
    engine = {"engine": "onnxruntime-cpu", "version": "1.20", "threads": 1, "loaded": {}}
    assert same_engine(engine, {**engine, "loaded": {"a": 1}}) == ()
    assert same_engine(engine, {**engine, "version": "1.21", "threads": 2}) == (
        "version '1.20', here '1.21'",
        "threads 1, here 2",
    )


def test_a_key_is_readable_stable_and_fit_for_a_file() -> None:
    engine = {"engine": "onnxruntime-cpu", "version": "1.20.1", "provider": "cpu", "threads": 4, "share_weights": True}
    pc = Host(machine="ThinkPad X1", cpu="Intel(R) Core(TM) i7-1260P", cores=16, gpu="NVIDIA T550", load_1m=0.3)
    key = "intel-r-core-tm-i7-1260p_16c_onnxruntime-cpu-1.20.1_4t_shared"
    assert device_key(pc, engine) == device_key({**pc.to_json(), "load_1m": 9.0}, engine) == key
    jetson = Host(machine="NVIDIA Jetson Orin Nano", architecture="aarch64", cores=6, l4t="36.4.3")
    tensorrt = {"engine": "tensorrt", "version": "10.3.0", "compute_capability": "8.7", "engine_precision": "fp16"}
    assert device_key(jetson, tensorrt) == "nvidia-jetson-orin-nano_aarch64_6c_tensorrt-10.3.0_fp16"
    assert "nvidia-t550" in device_key(pc, {**engine, "provider": "cuda"})
    assert device_key(Host(cpu="../" * 100), {}) == device_key(Host(cpu="../" * 100), {})
    assert "/" not in device_key(Host(cpu="../../etc/passwd"), {})
    assert default_profile_path(Path("b"), pc, engine) == Path("b/profiles") / f"{key}.json"


def test_the_bundle_keeps_a_profile_for_each_device(tiny_bundle: tuple[Path, Any]) -> None:
    from tiny_bundle import write_tiny_bundle

    bundle, engine = Bundle.open(tiny_bundle[0]), FakeEngine()
    with pytest.raises(UsageError, match="has no profile of some-cpu_4c_fake_1t; it has none at all"):
        stored_profile(bundle, HOST, engine.describe())
    kept = measured(bundle.path, engine, Keeper(default_profile_path(bundle.path, HOST, engine.describe())))
    assert stored_profile(bundle, HOST, engine.describe()) == kept
    with pytest.raises(UsageError, match=r"no profile of some-cpu_4c_fake_2t; it has some-cpu_4c_fake_1t") as caught:
        stored_profile(bundle, HOST, {**engine.describe(), "threads": 2})
    assert "nsn-edge profile" in caught.value.hint
    write_tiny_bundle(bundle.path, seed=1)
    with pytest.raises(UsageError, match="of another export"):
        stored_profile(Bundle.open(bundle.path), HOST, engine.describe())


def test_documents_that_make_no_sense(tiny_bundle: tuple[Path, Any], tmp_path: Path) -> None:
    data = measured(tiny_bundle[0], FakeEngine()).to_json()
    for change, says in (
        ({"configurations": 3}, "'configurations'"),
        ({"configurations": [3]}, "3 where a configuration belongs"),
        ({"failed": None}, "not readable"),
        ({"host": []}, "'host'"),
    ):
        with pytest.raises(NsnEdgeError, match=says):
            DeviceProfile.from_json({**data, **change})
    data["configurations"][1]["rungs"][0]["turns_ms"] = ["fast"]
    file = tmp_path / "odd.json"
    file.write_text(json.dumps(data))
    with pytest.raises(NsnEdgeError, match=r"odd\.json: .*'turns_ms'"):
        DeviceProfile.load(file)
    with pytest.raises(UsageError, match="is a folder"):
        Keeper(tmp_path)
