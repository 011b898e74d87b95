"""Metrics, read back by Prometheus' own parser: nothing missing, nothing invented, the numbers those that happened."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tiny_bundle import ALL_RUNGS, TOP, TinyModel

from nsn_edge.errors import EngineError, QueueFullError, UsageError
from nsn_edge.runtimes.answers import Answer
from nsn_edge.runtimes.engines import FaultyEngine, OnnxRuntimeEngine
from nsn_edge.runtimes.events import KINDS, SessionEvent
from nsn_edge.runtimes.serving import Ended, Metrics, Server
from nsn_edge.runtimes.session import EdgeSession
from nsn_edge.runtimes.telemetry import Reading

X = np.ones((1, 16), np.float32)
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(read: Samples, name: str, **labels: str) -> float | None:
    return read.get((f"nsn_edge_{name}", tuple(sorted(labels.items()))))


class Watched:
    """A governor, as far as metrics care."""

    def __init__(self, reading: Reading | None) -> None:
        self.reading = reading


def test_a_session_under_load_as_prometheus_sees_it(tiny_bundle: tuple[Path, TinyModel]) -> None:
    metrics = Metrics()
    failing: list[bool] = []

    def fail(path: Path) -> None:
        if failing and path.name == "rank-005.onnx":
            raise EngineError("fell over")

    engine = FaultyEngine(OnnxRuntimeEngine(), before_run=fail)
    with EdgeSession.open(tiny_bundle[0], engine=engine, listener=metrics.event, observer=metrics.answer) as session:
        for done in session.preload(ALL_RUNGS):
            done.result(60)
        server = Server(session, listener=metrics.event, observer=metrics.ended)
        metrics.watch(server=server)
        for _ in range(3):
            server.submit({"x": X}).result(60)
        session.switch(5).result(60)
        server.submit({"x": X}).result(60)
        failing.append(True)
        assert server.submit({"x": X}).result(60).rank == 2
        server.submit({}).exception(60)
        server.submit({"x": X}, deadline_ms=0).exception(60)
        server.close()
        read = samples(metrics.text())
        assert value(read, "rank") == 5
        assert value(read, "queue_length") == 0
        assert value(read, "queue_capacity") == 64
        assert value(read, "resident_bytes") == session.resident_bytes
    assert value(read, "inference_seconds_count", rank=str(TOP)) == 3
    assert value(read, "inference_seconds_count", rank="5") == 1
    assert value(read, "inference_seconds_bucket", rank=str(TOP), le="+Inf") == 3
    assert value(read, "degraded_answers_total", rank="2") == 1
    assert value(read, "switches_total", rank="5") == 1
    assert value(read, "events_total", event="run_failed") == 1
    assert value(read, "events_total", event="degraded") == 1
    assert value(read, "events_total", event="load_failed") == 0, "a counter is there before its first event"
    assert value(read, "requests_total", outcome="answered") == 5
    assert value(read, "requests_total", outcome="failed") == 1
    assert value(read, "requests_total", outcome="expired") == 1
    assert value(read, "deadline_misses_total") == 1
    assert value(read, "queue_wait_seconds_count") == 7


def test_a_reading_in_prometheus_units_and_what_is_unknown_is_absent() -> None:
    metrics = Metrics()
    governor = Watched(None)
    metrics.watch(governor=governor)
    assert value(samples(metrics.text()), "battery_ratio") is None
    governor.reading = Reading(
        1.0, battery_pct=40.0, on_mains=False, temperature_c=61.5, power_mw=5200.0, gpu_mhz=918.0, age_s=0.25
    )
    read = samples(metrics.text())
    expected = {
        "battery_ratio": 0.4,
        "on_mains": 0.0,
        "temperature_celsius": 61.5,
        "power_watts": 5.2,
        "gpu_hertz": 918e6,
        "reading_age_seconds": 0.25,
    }
    for name, wanted in expected.items():
        assert value(read, name) == pytest.approx(wanted)
    for name in ("throttling", "battery_joules", "cpu_hertz", "gpu_load_ratio"):
        assert value(read, name) is None


def test_latencies_fall_into_their_buckets() -> None:
    metrics = Metrics()
    for latency_ms in (0.5, 4.0, 4.9, 80.0, 9000.0):
        metrics.answer(Answer({}, 96, latency_ms))
    metrics.ended(Ended("answered", 30.0, False))
    read = samples(metrics.text())
    counts = {
        le: value(read, "inference_seconds_bucket", rank="96", le=le) for le in ("0.001", "0.005", "0.1", "5.0", "+Inf")
    }
    assert counts == {"0.001": 1, "0.005": 3, "0.1": 4, "5.0": 4, "+Inf": 5}
    assert value(read, "inference_seconds_sum", rank="96") == pytest.approx(9.0894)
    assert value(read, "queue_wait_seconds_bucket", le="0.02") == 0
    assert value(read, "queue_wait_seconds_bucket", le="0.035") == 1


def test_every_family_says_what_it_is_and_has_the_prefix() -> None:
    metrics = Metrics()
    metrics.watch(governor=Watched(Reading(1.0, battery_pct=5.0)))
    for kind in KINDS:
        metrics.event(SessionEvent(kind, 5))
    families = list(text_string_to_metric_families(metrics.text()))
    assert len(families) > 7
    for family in families:
        assert family.name.startswith("nsn_edge_")
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram")


def test_two_sessions_have_two_registries() -> None:
    first, second = Metrics(), Metrics()
    first.event(SessionEvent("loaded", 5))
    assert value(samples(first.text()), "events_total", event="loaded") == 1
    assert value(samples(second.text()), "events_total", event="loaded") == 0


def test_it_is_scraped_over_http_on_this_machine_alone() -> None:
    metrics = Metrics()
    metrics.answer(Answer({}, 96, 1.0))
    with metrics.serve(0) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=")
            read = samples(response.read().decode())
        assert value(read, "inference_seconds_count", rank="96") == 1
        with pytest.raises(UsageError, match=f"cannot listen at 127.0.0.1:{port}"), Metrics().serve(port):
            pass
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60)


def test_without_the_package_serving_works_and_metrics_say_what_to_install() -> None:
    script = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from nsn_edge.runtimes.serving import Metrics, Server\n"
        "from nsn_edge.errors import MissingDependencyError\n"
        "try:\n    Metrics()\n"
        "except MissingDependencyError as error:\n    print(error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "pip install 'nsn-edge[metrics]'"


def test_rejections_count() -> None:
    metrics = Metrics()
    metrics.event(SessionEvent("rejected", None, QueueFullError("full").message))
    metrics.ended(Ended("rejected", 0.0, True))
    read = samples(metrics.text())
    assert value(read, "requests_total", outcome="rejected") == 1
    assert value(read, "deadline_misses_total") == 1
