from __future__ import annotations

import getpass
import json
import os
import platform
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from nsn_edge.runtimes.profiling import Host, describe_host, peak_memory_mb
from nsn_edge.runtimes.profiling.host import installed_version, l4t_release, read_text


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


PC = {
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD  EPYC 9V74\ncpu MHz\t\t: 2596.144\n\n"
    "processor\t: 1\nmodel name\t: AMD  EPYC 9V74\n",
    "proc/meminfo": "MemTotal:       24684096 kB\nMemAvailable:   20000000 kB\n",
    "proc/loadavg": "0.25 0.10 0.05 1/100 4242\n",
    "proc/sys/kernel/osrelease": "6.1.0-18-amd64\n",
    "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "sys/class/dmi/id/product_name": "To Be Filled By O.E.M.\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "3100000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "4500000\n",
}

JETSON = {
    "proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\n\nprocessor\t: 1\nCPU implementer\t: 0x41\n",
    "etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, DATE: ?\n",
    "sys/firmware/devicetree/base/model": b"NVIDIA Jetson AGX Thor Developer Kit\x00",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
}


def test_a_pc(tmp_path: Path) -> None:
    host = describe_host(write(tmp_path, PC), version_of=lambda name: {"numpy": "2.0"}.get(name))
    assert host.cpu == "AMD EPYC 9V74"
    assert (host.cores, host.governor, host.load_1m) == (2, "powersave", 0.25)
    assert (host.frequency_mhz, host.max_frequency_mhz) == (3100.0, 4500.0)
    assert host.memory_mb == pytest.approx(25276.5, abs=0.1)
    assert host.machine is None  # a placeholder is no name
    assert host.l4t is None
    assert (host.kernel, host.system) == ("6.1.0-18-amd64", "Debian GNU/Linux 12 (bookworm)")
    assert host.packages == {"numpy": "2.0"}
    assert "AMD EPYC 9V74, 2 cores, 3.10 GHz, governor powersave" in host.summary()


def test_a_jetson(tmp_path: Path) -> None:
    host = describe_host(write(tmp_path, JETSON))
    assert host.machine == "NVIDIA Jetson AGX Thor Developer Kit"
    assert host.l4t == "38.2.0"
    assert host.cpu is None
    assert host.frequency_mhz is None
    assert "NVIDIA Jetson AGX Thor Developer Kit" in host.summary()
    assert "L4T 38.2.0" in host.summary()


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    host = describe_host(tmp_path, version_of=lambda name: None)
    known = {key for key, value in host.to_json().items() if value not in (None, {})}
    assert known == {"architecture", "python", "measured_at"}
    assert "unknown" in Host().summary()


@pytest.mark.parametrize("garbage", [b"", b"\xff\xfe\x00", b"NaN\n", b"processor", b"-5\n"])
def test_garbage_is_unknown(tmp_path: Path, garbage: bytes) -> None:
    host = describe_host(write(tmp_path, dict.fromkeys(PC, garbage)), version_of=lambda name: None)
    assert (host.frequency_mhz, host.max_frequency_mhz, host.memory_mb, host.cores) == (None, None, None, None)
    json.dumps(host.to_json(), allow_nan=False)


def test_folders_where_files_belong(tmp_path: Path) -> None:
    for name in PC:
        (tmp_path / name).mkdir(parents=True)
    assert describe_host(tmp_path).cpu is None


def test_a_file_that_does_not_answer_now(tmp_path: Path) -> None:
    """A gated sensor answers EAGAIN; an open pipe without data does the same."""
    path = tmp_path / "gated"
    os.mkfifo(path)
    keeper = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        assert read_text(path) is None
    finally:
        os.close(keeper)


def test_this_machine_tells_nothing_personal() -> None:
    text = json.dumps(describe_host().to_json())
    for secret in (platform.node(), getpass.getuser() if os.environ.get("USER") else ""):
        if len(secret) > 4:  # "root" is a word too
            assert secret not in text


def test_the_time_is_utc(tmp_path: Path) -> None:
    noon = datetime(2026, 3, 1, 12, 0, tzinfo=timezone(timedelta(hours=2)))
    assert describe_host(tmp_path, now=lambda: noon).measured_at == "2026-03-01T10:00:00+00:00"


@pytest.mark.parametrize(
    ("line", "release"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic", "36.4.3"),
        ("# R32 (release), REVISION: 7.1, GCID: 1", "32.7.1"),
        ("R36", None),
    ],
)
def test_l4t(tmp_path: Path, line: str, release: str | None) -> None:
    assert l4t_release(write(tmp_path, {"etc/nv_tegra_release": line})) == release


def test_versions_come_from_metadata() -> None:
    assert installed_version("numpy")
    assert installed_version("no-such-distribution") is None


def test_peak_memory(tmp_path: Path) -> None:
    write(
        tmp_path, {"proc/self/status": "Name:\tpython\nVmPeak:\t  999999 kB\nVmHWM:\t  100000 kB\nVmRSS:\t 50000 kB\n"}
    )
    assert peak_memory_mb(tmp_path) == pytest.approx(102.4)
    assert peak_memory_mb(tmp_path / "elsewhere") is None
    before = peak_memory_mb()
    assert before is not None
    block = bytearray(64_000_000)
    block[::4096] = b"x" * len(block[::4096])  # touch every page
    after = peak_memory_mb()
    assert after is not None
    assert after >= before
    assert after >= 64.0
