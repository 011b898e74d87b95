"""Sensor files of real devices under a temporary root, and a clock that tests turn by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class HandClock:
    """A monotonic clock that stands until it is moved."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def write_supply(root: Path, name: str, files: Mapping[str, object]) -> Path:
    """`/sys/class/power_supply/<name>` with these files."""
    return _write(root / "sys/class/power_supply" / name, files)


def write_zone(
    root: Path, index: int, zone_type: str, temp: object, trips: list[tuple[str, int]] | None = None
) -> Path:
    """A thermal zone; `temp` and the trip points in millidegrees."""
    files: dict[str, object] = {"type": zone_type, "temp": temp}
    for number, (kind, milli_c) in enumerate(trips or []):
        files |= {f"trip_point_{number}_type": kind, f"trip_point_{number}_temp": milli_c}
    return _write(root / f"sys/class/thermal/thermal_zone{index}", files)


def write_cooling(root: Path, index: int, kind: str, state: object) -> Path:
    """A cooling device and its current state."""
    return _write(root / f"sys/class/thermal/cooling_device{index}", {"type": kind, "cur_state": state})


def write_rapl(root: Path, zone: str, name: str, energy_uj: object, range_uj: object = 262_143_328_850) -> Path:
    """A zone of RAPL: `zone` is its number, `0` for a package, `0:0` for a part of it."""
    files = {"name": name, "energy_uj": energy_uj, "max_energy_range_uj": range_uj}
    return _write(root / f"sys/class/powercap/intel-rapl:{zone}", files)


def write_cpu_clock(root: Path, policy: int, khz: object) -> Path:
    """The clock of a core."""
    return _write(root / f"sys/devices/system/cpu/cpufreq/policy{policy}", {"scaling_cur_freq": khz})


def write_gpu(root: Path, status: str, control: str, bus_id: str = "0000:01:00.0") -> Path:
    """An NVIDIA GPU on the PCI bus, and what the kernel does with it while it idles."""
    device = _write(root / f"sys/bus/pci/devices/{bus_id}", {"vendor": "0x10de", "class": "0x030000"})
    _write(device / "power", {"runtime_status": status, "control": control})
    return device


def _write(folder: Path, files: Mapping[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")
    return folder


def write_jetson(root: Path, generation: int) -> Path:
    """What JetPack 5, 6 or 7 leaves on a board's disk, as far as it is looked at."""
    release, board, python, tensorrt, cuda, cudnn, mode = {
        5: (
            "R35 (release), REVISION: 4.1",
            "NVIDIA Jetson Xavier NX Developer Kit",
            "3.8",
            "8.5.2.2",
            "11.4.298",
            "8.6.0",
            2,
        ),
        6: (
            "R36 (release), REVISION: 4.3",
            "NVIDIA Jetson Orin Nano Developer Kit",
            "3.10",
            "10.3.0",
            "12.6.68",
            "9.3.0",
            0,
        ),
        7: (
            "R38 (release), REVISION: 2.0",
            "NVIDIA Jetson AGX Thor Developer Kit",
            "3.12",
            "10.13.3",
            "13.0.48",
            "9.12.0",
            1,
        ),
    }[generation]
    libraries = "usr/lib/aarch64-linux-gnu"
    files = {
        "etc/nv_tegra_release": f"# {release}, GCID: 41844464, BOARD: generic, EABI: aarch64, DATE: now",
        "sys/firmware/devicetree/base/model": f"{board}\0",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=120W >\n"
        "< POWER_MODEL ID=2 NAME=MODE_15W_6CORE >\n",
        "var/lib/nvpmodel/status": f"pmode:{mode:04}",
        f"usr/lib/python{python}/dist-packages/tensorrt/__init__.py": "",
        f"usr/lib/python{python}/dist-packages/tensorrt-{tensorrt}.dist-info/METADATA": "",
        f"{libraries}/libnvinfer.so.{tensorrt.split('.')[0]}": "",
        f"{libraries}/libnvinfer.so.{tensorrt}": "",
        f"{libraries}/libcudnn.so.{cudnn}": "",
        f"usr/local/cuda/lib64/libcudart.so.{cuda}": "",
        # The driver's own: where it is moved between generations.
        f"{libraries}/{'tegra' if generation == 5 else 'nvidia'}/libcuda.so.1.1": "",
    }
    if generation == 7:
        files[f"{libraries}/nvidia/libnvidia-ml.so.1"] = ""
    for name, content in files.items():
        path = root / name
        _write(path.parent, {path.name: content})
    return root
