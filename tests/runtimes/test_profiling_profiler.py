from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from timed_engine import RUN_MS, FakeEngine

from nsn_edge.bundle import Bundle
from nsn_edge.errors import NsnEdgeError, RankError, UsageError
from nsn_edge.runtimes.engines import FaultyEngine, OnnxRuntimeEngine
from nsn_edge.runtimes.engines.faulty import fail_on
from nsn_edge.runtimes.profiling import Host, MeasureSettings, Profile, ProfileSettings, host_summary, profile_bundle

QUICK = MeasureSettings(warmup=1, min_repetitions=5, min_time_s=0.0)


def fake_profile(path: Path, engine: FakeEngine, host: Host | None = None, **changes: Any) -> Profile:
    bundle = changes.pop("bundle", None) or Bundle.open(path)
    ranks = changes.pop("ranks", None)
    settings = ProfileSettings(**{"measure": MeasureSettings(min_time_s=0.0), **changes})
    return profile_bundle(bundle, engine, settings, ranks=ranks, clock=engine.clock, host=lambda: host or Host())


def version_1(profile: Profile) -> dict[str, Any]:
    """The document as it was before there was a grid."""
    data = profile.to_json()
    (configuration,) = data.pop("configurations")
    for key in ("memory", "energy", "conditions"):
        del configuration[key]
    for rung in configuration["rungs"]:
        for key in ("first_run_ms", "memory_mb", "turns_ms", "energy_rounds_mj"):
            del rung[key]
    bundle = {key: data["bundle"][key] for key in ("path", "model")}
    return {"schema_version": 1, "kind": "profile", "bundle": bundle, "host": data["host"], **configuration}


def test_every_rung_with_its_numbers(tiny_bundle: tuple[Path, Any]) -> None:
    path, _ = tiny_bundle
    bundle = Bundle.open(path).record_quality({5: {"spearman": 0.8}})
    engine = FakeEngine()
    profile = fake_profile(path, engine, bundle=bundle, batch_size=2)
    assert [rung.rank for rung in profile.rungs] == [2, 5, 8, 16]
    for rung in profile.rungs:
        assert rung.latency.p50_ms == pytest.approx(RUN_MS[rung.rank])
        assert rung.latency.n == 100
        assert rung.load_ms == pytest.approx(20.0)  # none pays for the engine's start
        assert rung.throughput_per_s == pytest.approx(2e3 / RUN_MS[rung.rank])
        assert rung.flops_fraction == pytest.approx(bundle.manifest.ladder.flops_fraction(rung.rank))
    assert profile.dense is profile.rungs[-1]
    assert profile.relative_to_dense(profile.rungs[1]) == pytest.approx(0.5)
    assert profile.rungs[1].quality == {"spearman": 0.8}
    assert profile.warnings == ()
    assert engine.open_graphs == 0
    assert engine.seen[0]["x"].shape == (2, 16)


@pytest.mark.parametrize(("form", "loads"), [("sliced", 2), ("masked", 2)])
def test_a_graph_with_a_rank_input(tiny_bundle: tuple[Path, Any], form: str, loads: int) -> None:
    path, model = tiny_bundle
    engine = FakeEngine()
    profile = fake_profile(path, engine, form=form)
    assert engine.loads == loads
    assert {int(inputs["rank"]) for inputs in engine.seen} == {2, 5, 8, 16}
    assert all(inputs["rank"].dtype == np.int64 and inputs["rank"].shape == () for inputs in engine.seen)
    # These graphs hold factors alone, at the top rank too, and never merge them.
    assert profile.dense is None
    layers = model.ladder.layers
    full = sum(layer.curve.full_rank * (layer.d_in + layer.d_out) for layer in layers)
    assert profile.rungs[-1].macs == full
    low = sum(layer.curve(2) * (layer.d_in + layer.d_out) for layer in layers)
    assert profile.rungs[0].macs == (low if form == "sliced" else full)
    assert profile.to_json()["configurations"][0]["rungs"][0]["relative_to_dense"] is None


@pytest.mark.parametrize("form", ["static", "sliced", "masked"])
def test_with_the_real_engine(text_bundle: tuple[Path, Any], form: str) -> None:
    path, _ = text_bundle
    settings = ProfileSettings(batch_size=3, sequence_length=8, form=form, measure=QUICK)
    profile = profile_bundle(Bundle.open(path), OnnxRuntimeEngine(), settings)
    assert len(profile.rungs) == 4
    assert all(rung.latency.min_ms > 0 and rung.load_ms > 0 for rung in profile.rungs)
    assert profile.settings["engine"] == "onnxruntime-cpu"
    assert profile.settings["form"] == form
    assert profile.host["python"]
    assert profile.peak_memory_mb is None or profile.peak_memory_mb > 10


def test_json_round_trip(tiny_bundle: tuple[Path, Any], tmp_path: Path) -> None:
    path, _ = tiny_bundle
    profile = fake_profile(path, FakeEngine(), Host(cpu="Some CPU", cores=4))
    file = tmp_path / "out" / "profile.json"
    profile.save(file)
    assert Profile.load(file).to_json() == profile.to_json()
    data = json.loads(file.read_text())
    assert (data["schema_version"], data["kind"]) == (2, "profile")
    assert data["bundle"] == {"path": str(path), "model": "tiny", "hash": profile.bundle_hash}
    settings, rung = data["configurations"][0]["settings"], data["configurations"][0]["rungs"][0]
    shape = "rank dense flops_fraction macs repetitions p50_ms p90_ms p95_ms p99_ms mean_ms std_ms cv steady load_ms"
    assert set(shape.split()) | {"throughput_per_s", "quality"} <= set(rung)
    for key in ("engine", "threads", "batch_size", "sequence_length", "warmup", "min_repetitions"):
        assert key in settings
    assert host_summary({**data["host"], "from_the_future": 1}).startswith("Some CPU, 4 cores")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "simulation"}, "not a profile"),
        ({"schema_version": 3}, "schema version 3"),
        ({"rungs": [3]}, "3 where a rung belongs"),
        ({"rungs": {}}, "'rungs'"),
        ({"bundle": {"path": "b"}}, "lacks 'model'"),
        ({"peak_memory_mb": "much"}, "'peak_memory_mb'"),
    ],
)
def test_a_damaged_profile(tiny_bundle: tuple[Path, Any], change: dict[str, Any], says: str) -> None:
    data = version_1(fake_profile(tiny_bundle[0], FakeEngine()))
    with pytest.raises(NsnEdgeError, match=says) as caught:
        Profile.from_json({**data, **change})
    assert caught.value.hint


@pytest.mark.parametrize("key", ["rank", "p50_ms", "quality", "repetitions", "dense"])
@pytest.mark.parametrize("value", [None, "x", []])
def test_a_damaged_rung(tiny_bundle: tuple[Path, Any], key: str, value: Any) -> None:
    data = fake_profile(tiny_bundle[0], FakeEngine()).to_json()
    data["configurations"][0]["rungs"][1][key] = value
    with pytest.raises(NsnEdgeError, match=key):
        Profile.from_json(data)


def test_files_that_are_no_profile(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no profile at"):
        Profile.load(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"kind": "prof')
    with pytest.raises(NsnEdgeError, match="not readable JSON"):
        Profile.load(tmp_path / "cut.json")


def test_warnings(tiny_bundle: tuple[Path, Any]) -> None:
    path, _ = tiny_bundle

    def warned(engine: FakeEngine, host: Host | None = None, **measure: Any) -> str:
        chosen = MeasureSettings(**{"min_time_s": 0.0, **measure})
        return " | ".join(fake_profile(path, engine, host, measure=chosen).warnings)

    unsteady = warned(FakeEngine(jitter=0.3))
    assert "unsteady" in unsteady
    assert "rank 2 (28%)" in unsteady  # 5 calls in a row, so ups and downs do not quite balance
    assert "rank 8 is not faster here than dense" in warned(FakeEngine(run_ms={**RUN_MS, 8: 10.0}))
    assert "stopped after 0.5 s" in warned(FakeEngine(), max_time_s=0.5)
    assert "fewer than 100 repetitions" in warned(FakeEngine(), min_repetitions=20)
    assert "'powersave' moves the clock" in warned(FakeEngine(), Host(governor="powersave"))
    assert warned(FakeEngine(), Host(governor="performance", usable_cores=1)) == ""
    assert "the load average was 7.5 on 4 cores" in warned(FakeEngine(), Host(usable_cores=4, load_1m=7.5))
    greedy = FakeEngine()
    greedy.describe = lambda: {"engine": "fake", "threads": 8}  # type: ignore[method-assign]
    assert "8 threads share 2 cores" in warned(greedy, Host(usable_cores=2))


def test_some_rungs_only(tiny_bundle: tuple[Path, Any]) -> None:
    path, _ = tiny_bundle
    assert [rung.rank for rung in fake_profile(path, FakeEngine(), ranks=[8, 2, 8]).rungs] == [2, 8]
    with pytest.raises(RankError, match="no rung at rank 9"):
        fake_profile(path, FakeEngine(), ranks=[9])
    with pytest.raises(UsageError, match="no rungs"):
        fake_profile(path, FakeEngine(), ranks=[])


def test_too_long_a_sequence(text_bundle: tuple[Path, Any], tiny_bundle: tuple[Path, Any]) -> None:
    with pytest.raises(UsageError, match="128 is longer than the 8") as caught:
        fake_profile(text_bundle[0], FakeEngine())
    assert "--sequence 8" in caught.value.hint
    # A model without sequences does not care.
    bundle = Bundle.open(tiny_bundle[0])
    short = replace(bundle, manifest=replace(bundle.manifest, task=replace(bundle.manifest.task, max_length=8)))
    assert fake_profile(tiny_bundle[0], FakeEngine(), bundle=short).rungs


def test_bad_settings() -> None:
    with pytest.raises(UsageError, match="unknown form"):
        ProfileSettings(form="folded")
    with pytest.raises(UsageError, match="'batch_size' cannot be 0"):
        ProfileSettings(batch_size=0)
    with pytest.raises(UsageError, match="'past' cannot be -1"):
        ProfileSettings(dimensions={"past": -1})


def test_graphs_are_closed_when_a_load_fails(tiny_bundle: tuple[Path, Any]) -> None:
    engine = FakeEngine()
    with pytest.raises(NsnEdgeError, match="fails on purpose"):
        profile_bundle(
            Bundle.open(tiny_bundle[0]), FaultyEngine(engine, before_load=fail_on("rank-008.onnx")), host=Host
        )
    assert engine.loads == 3
    assert engine.open_graphs == 0


def test_energy_is_kept_and_older_profiles_have_none(tiny_bundle: tuple[Path, Any]) -> None:
    data = version_1(fake_profile(tiny_bundle[0], FakeEngine()))
    assert [rung.pop("energy_mj") for rung in data["rungs"]] == [None] * 4
    assert [rung.energy_mj for rung in Profile.from_json(data).rungs] == [None] * 4  # written before there was the key
    data["rungs"][2]["energy_mj"] = 12.5
    assert Profile.from_json(data).rungs[2].energy_mj == 12.5
    data["rungs"][2]["energy_mj"] = "much"
    with pytest.raises(NsnEdgeError, match="'energy_mj'"):
        Profile.from_json(data)
