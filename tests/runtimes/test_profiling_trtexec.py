"""Times that trtexec took, as its three generations write them (TensorRT's samples/common/sampleReporting.cpp)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nsn_edge.bundle import Bundle
from nsn_edge.errors import RankError, UsageError
from nsn_edge.runtimes.profiling import Host, Profile, profile_from_times, read_times

# As the C++ streams print them: six digits, a blank before each colon, a comma at the start of each further line.
CURRENT = """[
  { "startEnqMs" : 224.161, "endEnqMs" : 224.192, "startH2dMs" : 224.154, "endH2dMs" : 224.169, \
"startComputeMs" : 224.171, "endComputeMs" : 226.419, "startD2hMs" : 226.42, "endD2hMs" : 226.433, \
"h2dMs" : 0.0152588, "computeMs" : 2.24771, "d2hMs" : 0.0126953, "latencyMs" : 2.27567 }
, { "startEnqMs" : 226.21, "endEnqMs" : 226.239, "startH2dMs" : 224.183, "endH2dMs" : 224.197, \
"startComputeMs" : 226.421, "endComputeMs" : 228.665, "startD2hMs" : 228.666, "endD2hMs" : 228.679, \
"h2dMs" : 0.0141602, "computeMs" : 2.24463, "d2hMs" : 0.0131836, "latencyMs" : 2.27197 }
]
"""
END_TO_END = """[
  { "startEnqMs" : 0.0351562, "endEnqMs" : 0.0898438, "startH2dMs" : 0, "endH2dMs" : 0.0175781, \
"startComputeMs" : 0.0195312, "endComputeMs" : 9.31152, "startD2hMs" : 9.3125, "endD2hMs" : 9.32617, \
"h2dMs" : 0.0175781, "computeMs" : 9.29199, "d2hMs" : 0.0136719, "latencyMs" : 9.32324, "endToEndMs" : 9.32617 }
, { "startEnqMs" : 201.2, "endEnqMs" : 201.231, "startH2dMs" : 201.19, "endH2dMs" : 201.204, \
"startComputeMs" : 201.206, "endComputeMs" : 203.5, "startD2hMs" : 203.501, "endD2hMs" : 203.514, \
"h2dMs" : 0.0140381, "computeMs" : 2.29398, "d2hMs" : 0.0129395, "latencyMs" : 2.32096, "endToEndMs" : 4.51 }
]
"""
IN_OUT = """[
  { "startInMs" : 0, "endInMs" : 0.012, "startComputeMs" : 0.014, "endComputeMs" : 8.1, "startOutMs" : 8.11, \
"endOutMs" : 8.12, "inMs" : 0.012, "computeMs" : 8.086, "outMs" : 0.01, "latencyMs" : 8.108, "endToEndMs" : 8.12 }
, { "startInMs" : 250, "endInMs" : 250.012, "startComputeMs" : 250.014, "endComputeMs" : 252.1, \
"startOutMs" : 252.11, "endOutMs" : 252.12, "inMs" : 0.012, "computeMs" : 2.086, "outMs" : 0.01, \
"latencyMs" : 2.108, "endToEndMs" : 2.12 }
]
"""
LAYERS = """[
  { "count" : 1331 }
, { "name" : "MatMul_1", "timeMs" : 12.1, "averageMs" : 0.0091, "medianMs" : 0.009, "percentage" : 3.2 }
]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "times.json"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "latency_ms", "left_out", "generation"),
    [
        (CURRENT, (2.27567, 2.27197), 0, "current"),
        (END_TO_END, (2.32096,), 1, "end-to-end"),
        (IN_OUT, (2.108,), 1, "in-out"),
    ],
)
def test_three_generations(
    tmp_path: Path, text: str, latency_ms: tuple[float, ...], left_out: int, generation: str
) -> None:
    times = read_times(written(tmp_path, text))
    assert (times.latency_ms, times.left_out, times.generation) == (latency_ms, left_out, generation)
    if generation != "current":
        assert read_times(tmp_path / "times.json", warm_up_ms=0.0).left_out == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not readable JSON"),
        (CURRENT[:-40], "not readable JSON"),  # trtexec was broken off
        ("{}", "not a list of inferences"),
        ("[]", "not a list of inferences"),
        ("[3]", "not a list of inferences"),
        (LAYERS, "It looks like --exportProfile's"),
        (CURRENT.replace("2.27197", '"fast"'), "inference 2 has the latencyMs 'fast'"),
        (CURRENT.replace("2.27567", "-1"), "inference 1 has the latencyMs -1"),
        (CURRENT.replace("2.24463", "NaN"), "inference 2 has the computeMs nan"),
        (END_TO_END.replace("201.206", "20.1"), "2 inferences, all within the warm-up of 200 ms"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        read_times(written(tmp_path, text))
    assert "times.json" in caught.value.message
    assert "trtexec" in caught.value.hint
    with pytest.raises(UsageError, match="cannot read"):
        read_times(tmp_path / "absent.json")


def test_a_profile_of_them(tiny_bundle: tuple[Path, Any], tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle[0])
    times = {16: read_times(written(tmp_path, END_TO_END)), 2: read_times(written(tmp_path, CURRENT))}
    host = Host(machine="NVIDIA Jetson Orin Nano").to_json()
    profile = profile_from_times(bundle, times, batch_size=4, host=host)
    assert [(rung.rank, rung.dense, rung.latency.n) for rung in profile.rungs] == [(2, False, 2), (16, True, 1)]
    low, top = profile.rungs
    assert low.latency.p50_ms == pytest.approx((2.27567 + 2.27197) / 2)
    assert low.throughput_per_s == pytest.approx(4e3 / low.latency.mean_ms)
    assert (top.flops_fraction, top.load_ms, top.energy_mj, profile.peak_memory_mb) == (1.0, None, None, None)
    assert profile.settings["median_compute_ms"]["16"] == 2.29398
    assert "1 inferences of the warm-up were left out" in profile.warnings
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == profile
    assert any("which device" in warning for warning in profile_from_times(bundle, times).warnings)
    with pytest.raises(RankError, match="no rung at rank 3"):
        profile_from_times(bundle, {3: times[2]})
    with pytest.raises(UsageError, match="batch 0"):
        profile_from_times(bundle, times, batch_size=0)
    with pytest.raises(UsageError, match="unknown form"):
        profile_from_times(bundle, times, form="folded")
    with pytest.raises(UsageError, match="no times"):
        profile_from_times(bundle, {})
