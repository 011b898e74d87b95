"""A session under load: a bounded queue in front of it, and what operators want to see.

Server(session)           submit(inputs) -> Future[Answer]; a bounded queue, deadlines, back-pressure, clean shutdown
JsonlEvents(path)         a listener: one JSON document per event, in a file of bounded size
Metrics()                 counters, gauges and latency histograms for Prometheus
"""

from nsn_edge.runtimes.serving.jsonl import JsonlEvents
from nsn_edge.runtimes.serving.metrics import Metrics
from nsn_edge.runtimes.serving.server import Ended, Server, ServerSettings

__all__ = ["Ended", "JsonlEvents", "Metrics", "Server", "ServerSettings"]
