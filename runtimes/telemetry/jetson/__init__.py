"""A Jetson's telemetry: Nano, TX2, Xavier, Orin, Thor.

jetson_telemetry()           the board's files, with tegrastats or jtop for what they do not give; None on other devices
identify()                   which board, with which L4T and JetPack
TegrastatsSource()           the lines of a running tegrastats
JtopSource()                 jetson-stats, where it is installed already
parse_line(text)             one line of tegrastats, of any generation
"""

from nsn_edge.runtimes.telemetry.jetson.board import JetsonBoard, identify
from nsn_edge.runtimes.telemetry.jetson.jtop import JtopSource
from nsn_edge.runtimes.telemetry.jetson.sensors import JetsonSensors
from nsn_edge.runtimes.telemetry.jetson.tegrastats import TegrastatsSource
from nsn_edge.runtimes.telemetry.jetson.tegrastats_line import TegrastatsLine, parse_line
from nsn_edge.runtimes.telemetry.jetson.telemetry import JetsonTelemetry, jetson_telemetry

__all__ = [
    "JetsonBoard",
    "JetsonSensors",
    "JetsonTelemetry",
    "JtopSource",
    "TegrastatsLine",
    "TegrastatsSource",
    "identify",
    "jetson_telemetry",
    "parse_line",
]
