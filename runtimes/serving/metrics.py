"""What a session does, as Prometheus scrapes it.

    metrics = Metrics()
    with EdgeSession.open("bundle", listener=metrics.event, observer=metrics.answer) as session:
        metrics.watch(session)
        with metrics.serve(9464): ...          # http://127.0.0.1:9464/metrics

Units are Prometheus' own: seconds, ratios, watts, joules. What a device does not know has no sample, never a zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from nsn_edge.errors import MissingDependencyError, UsageError
from nsn_edge.runtimes.answers import Answer
from nsn_edge.runtimes.events import KINDS, SWITCHED, SessionEvent
from nsn_edge.runtimes.serving.server import OUTCOMES, Ended, Server
from nsn_edge.runtimes.session import EdgeSession
from nsn_edge.runtimes.telemetry.base import Reading

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily

LATENCY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
"""From a small encoder's lowest rung to a token of a large decoder on a slow device."""

_READING = (
    ("battery_pct", "battery_ratio", "Charge of all batteries together.", 1e-2),
    ("on_mains", "on_mains", "1 while something else than the battery pays.", 1.0),
    ("temperature_c", "temperature_celsius", "Junction temperature.", 1.0),
    ("temperature_limit_c", "temperature_limit_celsius", "Where the device begins to throttle.", 1.0),
    ("throttling", "throttling", "1 while the device says that it throttles.", 1.0),
    ("power_mw", "power_watts", "Power drawn.", 1e-3),
    ("energy_j", "energy_joules", "Energy drawn since some fixed moment.", 1.0),
    ("battery_j", "battery_joules", "Energy left in all batteries together.", 1.0),
    ("gpu_load_pct", "gpu_load_ratio", "How busy the GPU is.", 1e-2),
    ("gpu_mhz", "gpu_hertz", "Clock of the GPU.", 1e6),
    ("cpu_mhz", "cpu_hertz", "Clock of the fastest processor core.", 1e6),
    ("over_current", "over_current", "1 if the board's over-current protection acted.", 1.0),
    ("age_s", "reading_age_seconds", "Age of the oldest value of the last reading.", 1.0),
)
"""Field of a reading, name of the metric, its help, and the factor to its unit."""


class KnowsReading(Protocol):
    """A governor."""

    @property
    def reading(self) -> Reading | None:
        """The last one."""


class Metrics:
    """Counters, gauges and histograms in a registry of their own."""

    def __init__(self) -> None:
        """
        Raises:
            MissingDependencyError: the package `prometheus_client` is not installed.
        """
        try:
            from prometheus_client import CollectorRegistry, Counter, Histogram
        except ImportError as error:
            raise MissingDependencyError("prometheus_client", "metrics", "metrics for Prometheus") from error

        self.registry = CollectorRegistry()
        """For applications that serve it themselves."""

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"nsn_edge_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"nsn_edge_{name}", text, labels, registry=self.registry, buckets=LATENCY_BUCKETS_S)

        self._events = counter("events", "Events by kind; docs/serving.md lists them.", "event")
        self._switches = counter("switches", "Switches of the current rank, by the rank switched to.", "rank")
        self._degraded = counter("degraded_answers", "Answers of a rung that stood in for another.", "rank")
        self._inference = histogram("inference_seconds", "Latency of the inference, by the rank that answered.", "rank")
        self._requests = counter("requests", "Requests by how they ended.", "outcome")
        self._waits = histogram("queue_wait_seconds", "Time in the queue.")
        self._misses = counter("deadline_misses", "Requests with a deadline that were not answered by then.")
        for kind in KINDS:
            self._events.labels(kind)  # a counter that appears with its first increment has no rate before
        for outcome in OUTCOMES:
            self._requests.labels(outcome)
        self._session: EdgeSession | None = None
        self._server: Server | None = None
        self._governor: KnowsReading | None = None
        self.registry.register(self)

    def event(self, event: SessionEvent) -> None:
        """A listener for sessions, servers and governors."""
        self._events.labels(event.kind).inc()
        if event.kind == SWITCHED:
            self._switches.labels(str(event.rank)).inc()

    def answer(self, answer: Answer) -> None:
        """An observer for sessions."""
        rank = str(answer.rank)
        self._inference.labels(rank).observe(answer.latency_ms / 1e3)
        if answer.degraded:
            self._degraded.labels(rank).inc()

    def ended(self, ended: Ended) -> None:
        """An observer for servers."""
        self._requests.labels(ended.outcome).inc()
        self._waits.observe(ended.waited_ms / 1e3)
        if ended.missed:
            self._misses.inc()

    def watch(
        self,
        session: EdgeSession | None = None,
        *,
        server: Server | None = None,
        governor: KnowsReading | None = None,
    ) -> None:
        """Show the state of these, too, at each scrape."""
        self._session = session or (server.session if server is not None else None)
        self._server = server
        self._governor = governor

    def text(self) -> str:
        """The text exposition format, version 0.0.4."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry).decode()

    @contextmanager
    def serve(self, port: int, address: str = "127.0.0.1") -> Iterator[int]:
        """Answer scrapes over HTTP, in a thread, until the context ends.

        Args:
            port: to listen at; 0 for any that is free.
            address: this machine alone by default. Beyond it anybody may read the metrics: there is no password.

        Yields:
            The port.

        Raises:
            UsageError: nobody can listen there.
        """
        from prometheus_client import start_http_server

        try:
            server, thread = start_http_server(port, address, self.registry)
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"cannot listen at {address}:{port}: {error}", "choose another port, or 0 for any"
            ) from error
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Part of a collector's protocol: without it registering would collect."""
        return ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Part of a collector's protocol: the state of what is watched, now."""
        from prometheus_client.core import GaugeMetricFamily

        def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"nsn_edge_{name}", text, value=value)

        session, server = self._session, self._server
        if session is not None:
            yield gauge("rank", "The current rank.", session.rank)
            yield gauge("resident_rungs", "Rungs in memory.", len(session.resident_ranks))
            yield gauge("resident_bytes", "Weights of the rungs in memory.", session.resident_bytes)
        if server is not None:
            yield gauge("queue_length", "Requests that wait.", server.waiting)
            yield gauge("queue_capacity", "Requests that may wait.", server.settings.capacity)
        reading = None if self._governor is None else self._governor.reading
        if reading is not None:
            for field, name, text, factor in _READING:
                value = getattr(reading, field)
                if value is not None:
                    yield gauge(name, text, float(value) * factor)
