"""The files of a Jetson of each generation, as far as telemetry looks at them, under a temporary root.

Names and figures are those of kernel documents, public reports and recorded logs; nothing here was copied off a board
by this project.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from sensor_tree import write_cooling, write_zone

Build = Callable[[Path], Path]


def write_identity(root: Path, model: str, compatible: str, release: str | None) -> None:
    """The device tree's strings, each with its NUL, and `/etc/nv_tegra_release`."""
    tree = {"model": f"{model}\0", "compatible": "".join(f"{name}\0" for name in compatible.split())}
    for name, content in tree.items():
        write_file(root / "sys/firmware/devicetree/base" / name, content)
    if release is not None:
        write_file(
            root / "etc/nv_tegra_release",
            f"# {release}, GCID: 41844464, BOARD: generic, EABI: aarch64, DATE: Mon Sep 22 22:09:26 UTC 2025\n",
        )


def write_hwmon(root: Path, number: int, name: str, files: Mapping[str, object]) -> Path:
    """A chip below `/sys/class/hwmon`."""
    chip = root / f"sys/class/hwmon/hwmon{number}"
    for file, content in {"name": name, **files}.items():
        write_file(chip / file, f"{content}\n")
    return chip


def write_ina3221(root: Path, number: int, channels: Mapping[str, tuple[object, object]]) -> Path:
    """An INA3221 as JetPack 5 and later show it: up to three channels `label: (mV, mA)`, the shunts and their sum."""
    files: dict[str, object] = {}
    for channel, (label, (volts_m, amps_m)) in enumerate(channels.items(), start=1):
        files |= {
            f"in{channel}_label": label.rstrip("0123456789") if label.startswith("NC") else label,
            f"in{channel}_input": volts_m,
            f"curr{channel}_input": amps_m,
            f"in{channel + 3}_input": 5,
        }
    return write_hwmon(
        root, number, "ina3221", {**files, "in7_label": "sum of shunt voltages", "in7_input": 40, "curr4_input": 9999}
    )


def write_ina3221x(root: Path, device: str, rails: Mapping[str, object], folder: str = "iio:device0") -> Path:
    """An INA3221 as JetPack 4 shows it: `label: mW`."""
    chip = root / f"sys/bus/i2c/drivers/ina3221x/{device}/{folder}"
    for channel, (label, power_mw) in enumerate(rails.items()):
        write_file(chip / f"rail_name_{channel}", f"{label}\n")
        write_file(chip / f"in_power{channel}_input", f"{power_mw}\n")
    return chip


def write_gpu(root: Path, devfreq: str, hz: object, load: object | None = None, load_at: str = "") -> None:
    """The GPU's clock, and its load (tenths of a percent) at a place."""
    write_file(root / f"sys/class/devfreq/{devfreq}/cur_freq", f"{hz}\n")
    if load is not None:
        write_file(root / load_at, f"{load}\n")


def write_power_mode(root: Path, number: int, table: Mapping[int, str]) -> None:
    """What nvpmodel leaves: its state, and the board's table, which is longer than a sensor's file."""
    write_file(root / "var/lib/nvpmodel/status", f"pmode:{number:04} fmode:quiet\n")
    modes = "".join(f"< POWER_MODEL ID={mode} NAME={name} >\nCPU_ONLINE CORE_0 1\n\n" for mode, name in table.items())
    write_file(root / "etc/nvpmodel.conf", "# " + "NVIDIA " * 1000 + "\n" + modes + "< PM_CONFIG DEFAULT=0 >\n")


def write_program(root: Path, path: str, script: str) -> Path:
    """A shell script in a program's place."""
    program = write_file(root / path, f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def write_file(path: Path, content: str) -> Path:
    """A file and the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


class GatedFile:
    """A file that answers EAGAIN like a power-gated zone: a pipe that somebody holds open and writes nothing into."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
        self._held = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def __enter__(self) -> GatedFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._held)


def nano_jp4(root: Path) -> Path:
    """Nano, JetPack 4.6."""
    write_identity(
        root,
        "NVIDIA Jetson Nano Developer Kit",
        "nvidia,p3450-0000 nvidia,p3449-0000+p3448-0000 nvidia,jetson-nano nvidia,tegra210",
        "R32 (release), REVISION: 7.4",
    )
    zones = {"AO-therm": 39500, "CPU-therm": 36500, "GPU-therm": 36000, "PLL-therm": 34000, "PMIC-Die": 100000}
    for index, (kind, milli_c) in enumerate(zones.items()):
        trips = {"CPU-therm": [("active", 51000), ("passive", 97000), ("critical", 102500)]}.get(kind)
        write_zone(root, index, kind, milli_c, trips)
    write_zone(root, 5, "thermal-fan-est", 36250)
    write_ina3221x(root, "6-0040", {"POM_5V_IN": 1022, "POM_5V_GPU": 0, "POM_5V_CPU": 204})
    write_gpu(root, "57000000.gpu", 76800000, 512, "sys/devices/gpu.0/load")
    write_power_mode(root, 1, {0: "MAXN", 1: "5W"})
    return root


def tx2_jp4(root: Path) -> Path:
    """TX2, JetPack 4.6: two chips, two CPU clusters."""
    write_identity(
        root, "quill", "nvidia,quill-4k nvidia,p2597-0000+p3310-1000 nvidia,tegra186", "R32 (release), REVISION: 7.1"
    )
    zones = {"BCPU-therm": 42500, "MCPU-therm": 43000, "GPU-therm": 39500, "PLL-therm": 42500, "Tboard_tegra": 38000,
             "Tdiode_tegra": 39250, "PMIC-Die": 100000, "thermal-fan-est": 41300}  # fmt: skip
    for index, (kind, milli_c) in enumerate(zones.items()):
        write_zone(root, index, kind, milli_c, [("passive", 95500), ("critical", 101000)])
    write_ina3221x(root, "0-0040", {"VDD_SYS_GPU": 182, "VDD_SYS_SOC": 730, "VDD_4V0_WIFI": 0})
    write_ina3221x(root, "0-0041", {"VDD_IN": 5297, "VDD_SYS_CPU": 1917, "VDD_SYS_DDR": 1241}, folder="iio_device")
    write_gpu(root, "17000000.gp10b", 114750000, 0, "sys/devices/gpu.0/load")
    write_power_mode(root, 0, {0: "MAXN", 1: "MAXQ", 3: "MAXP_CORE_ARM"})
    return root


def agx_xavier_jp4(root: Path) -> Path:
    """AGX Xavier, JetPack 4.6: rails called like other things, and none at the board's input."""
    write_identity(root, "Jetson-AGX", "nvidia,p2972-0000 nvidia,tegra194", "R32 (release), REVISION: 7.1")
    zones = {"CPU-therm": 37500, "GPU-therm": 37500, "AUX-therm": 36000, "AO-therm": 37500, "PMIC-Die": 100000,
             "Tboard_tegra": 37000, "Tdiode_tegra": 40000, "thermal-fan-est": 36900}  # fmt: skip
    for index, (kind, milli_c) in enumerate(zones.items()):
        write_zone(root, index, kind, milli_c, [("passive", 86000), ("critical", 90500)])
    write_ina3221x(root, "1-0040", {"GPU": 0, "CPU": 311, "SOC": 932})
    write_ina3221x(root, "1-0041", {"CV": 0, "VDDRQ": 621, "SYS5V": 1482})
    write_gpu(root, "17000000.gv11b", 318750000, 5, "sys/devices/platform/gpu.0/load")
    write_power_mode(root, 2, {0: "MAXN", 1: "MODE_10W", 2: "MODE_15W"})
    return root


def orin_nano_jp5(root: Path) -> Path:
    """Orin Nano, JetPack 5.1: a board input, gated CV zones."""
    write_identity(
        root,
        "NVIDIA Orin Nano Developer Kit",
        "nvidia,p3768-0000+p3767-0005 nvidia,p3767-0005 nvidia,tegra234",
        "R35 (release), REVISION: 4.1",
    )
    zones = {"CPU-therm": 47937, "GPU-therm": 45875, "CV0-therm": -256000, "SOC0-therm": 46968, "SOC1-therm": 48875,
             "tj-therm": 48875}  # fmt: skip
    for index, (kind, milli_c) in enumerate(zones.items()):
        write_zone(root, index, kind, milli_c, [("passive", 99000), ("hot", 101000), ("critical", 104500)])
    write_cooling(root, 0, "pwm-fan", 2)
    write_cooling(root, 1, "cpu-throttle-alert", 0)
    write_cooling(root, 2, "gpu-throttle-alert", 0)
    write_ina3221(root, 3, {"VDD_IN": (5000, 1060), "VDD_CPU_GPU_CV": (5000, 154.6), "VDD_SOC": (5000, 284.8)})
    write_hwmon(root, 1, "soctherm_oc", {"oc1_event_cnt": 0, "oc2_event_cnt": 0, "oc3_event_cnt": 7})
    write_hwmon(root, 0, "pwmfan", {"pwm1": 71})
    write_gpu(root, "17000000.ga10b", 611000000, 843, "sys/devices/platform/gpu.0/load")
    write_power_mode(root, 0, {0: "15W", 1: "7W"})
    return root


def agx_orin_jp6(root: Path) -> Path:
    """AGX Orin, JetPack 6: two chips with an unconnected channel, no board input, no link to the GPU's load."""
    write_identity(
        root,
        "NVIDIA Jetson AGX Orin Developer Kit",
        "nvidia,p3737-0000+p3701-0005 nvidia,p3701-0005 nvidia,tegra234",
        "R36 (release), REVISION: 4.3",
    )
    zones = {"cpu-thermal": 65600, "gpu-thermal": 61800, "cv0-thermal": "", "cv1-thermal": "", "soc0-thermal": 61300,
             "tj-thermal": 66000}  # fmt: skip
    for index, (kind, milli_c) in enumerate(zones.items()):
        trips = [("critical", 117500)] if kind == "tj-thermal" else [("passive", 112000), ("critical", 117500)]
        write_zone(root, index, kind, milli_c, trips)
    write_cooling(root, 0, "gpu-throttle-alert", 0)
    write_cooling(root, 1, "hot-surface-alert", 1)
    write_ina3221(root, 2, {"VDD_GPU_SOC": (19552, 1160), "VDD_CPU_CV": (19568, -20), "VIN_SYS_5V0": (5040, 2920)})
    write_ina3221(root, 4, {"NC1": (0, 0), "VDDQ_VDD2_1V8AO": (5016, 1400), "NC2": (5000, 100)})
    write_hwmon(root, 5, "soctherm_oc", {"oc1_event_cnt": 3, "oc2_event_cnt": 0, "oc3_event_cnt": 0})
    write_gpu(root, "17000000.gpu", 1185750000, 980, "sys/class/devfreq/17000000.gpu/device/load")
    write_power_mode(root, 0, {0: "MAXN", 1: "MODE_15W", 2: "MODE_30W", 3: "MODE_50W"})
    return root


def thor_r38(root: Path) -> Path:
    """AGX Thor, JetPack 7: a gated GPU, no load file, an idle rail that reads below zero."""
    write_identity(
        root,
        "NVIDIA Jetson AGX Thor Developer Kit",
        "nvidia,p4071-0000+p3834-0008 nvidia,p3834-0008 nvidia,tegra264",
        "R38 (release), REVISION: 2.0",
    )
    for index, (kind, milli_c) in enumerate({"tj": 36031, "soc012": 36062, "cpu": 35250, "soc345": 35900}.items()):
        write_zone(root, index, kind, milli_c, [("passive", 104000), ("critical", 109000)])
    write_zone(root, 4, "gpu", "")
    write_cooling(root, 0, "cpu-throttle-alert", 0)
    write_ina3221(
        root, 6, {"VDD_GPU": (12000, -32.667), "VDD_CPU_SOC_MSS": (12000, 410.25), "VIN_SYS_5V0": (5000, 865.4)}
    )
    write_gpu(root, "gpu-gpc-0", 0)
    write_gpu(root, "gpu-nvd-0", 1692000000)
    write_power_mode(root, 1, {0: "MAXN", 1: "120W"})
    return root


BOARDS: Mapping[str, Build] = {
    "nano-jp4": nano_jp4,
    "tx2-jp4": tx2_jp4,
    "agx-xavier-jp4": agx_xavier_jp4,
    "orin-nano-jp5": orin_nano_jp5,
    "agx-orin-jp6": agx_orin_jp6,
    "thor-r38": thor_r38,
}
"""A tree of each generation."""

TEGRASTATS_LINES: Mapping[str, str] = {
    "nano": "RAM 534/3964MB (lfb 98x4MB) SWAP 5/1982MB (cached 1MB) IRAM 0/252kB(lfb 252kB) "
    "CPU [16%@204,9%@204,0%@204,0%@204] EMC_FREQ 0%@204 GR3D_FREQ 0%@76 APE 25 PLL@34C CPU@36.5C PMIC@100C GPU@36C "
    "AO@39.5C thermal@36.25C POM_5V_IN 1022/1022 POM_5V_GPU 0/0 POM_5V_CPU 204/204",
    "tx2": "RAM 3276/7859MB (lfb 5x4MB) SWAP 1626/12122MB (cached 181MB) "
    "CPU [44%@1421,off,off,17%@1420,25%@1419,8%@1420] EMC_FREQ 1%@1866 GR3D_FREQ 7%@114 APE 150 MTS fg 1% bg 1% "
    "PLL@42.5C MCPU@43C PMIC@50C Tboard@38C GPU@39.5C BCPU@42.5C thermal@41.3C Tdiode@39.25C VDD_SYS_GPU 182/182 "
    "VDD_SYS_SOC 730/730 VDD_4V0_WIFI 0/0 VDD_IN 5297/5297 VDD_SYS_CPU 1917/1917 VDD_SYS_DDR 1241/1241",
    "agx-xavier": "RAM 721/31927MB (lfb 7291x4MB) SWAP 0/15963MB (cached 0MB) CPU [2%@1190,0%@1190,off,off] "
    "EMC_FREQ 0%@665 GR3D_FREQ 0%@318 APE 150 MTS fg 0% bg 0% AO@37.5C GPU@37.5C Tdiode@40C PMIC@100C AUX@36C "
    "CPU@37.5C thermal@36.9C Tboard@37C GPU 0/0 CPU 311/311 SOC 932/932 CV 0/0 VDDRQ 621/621 SYS5V 1482/1482",
    "orin-nano-jp5": "05-15-2025 18:30:28 RAM 6982/7620MB (lfb 2x128kB) SWAP 2640/16384MB (cached 202MB) "
    "CPU [97%@1984,95%@1984,91%@1984,93%@247] EMC_FREQ 18%@3199 GR3D_FREQ 84%@[713] NVENC 1%@115 NVDEC 40%@115 "
    "NVJPG off VIC 31%@115 OFA off PVA0_FREQ off APE 174 cv0@-256C cpu@65.562C soc2@64.156C gpu@63.5C tj@65.562C "
    "VDD_IN 17946mW/15710mW VDD_CPU_GPU_CV 8896mW/7585mW VDD_SOC 3923mW/3515mW",
    "agx-orin": "RAM 29114/30697MB (lfb 3x4MB)    SWAP 4915/15348MB (cached 1MB) CPU [3%@729,0%@2201,100%@2201] "
    "EMC_FREQ 1%@2133 GR3D_FREQ 0%@[305,306] NVENC      off  NVDEC    off NVDLA0    off          PVA0_FREQ off   "
    "APE           174        cpu@53.062C soc2@48.25C  gpu@47.812C tj@53.062C    VDD_GPU_SOC -392mW/3205mW "
    "VDD_CPU_CV 4405mW/4405mW VIN_SYS_5V0 4767mW/4767mW NC 100mW/100mW",
    "thor-r38": "05-17-2026 10:00:33 RAM 4280/125773MB (lfb 29x4MB) SWAP 0/2048MB (cached 0MB) CPU [0%@972,0%@972] "
    "EMC_FREQ 0%@665 GR3D_FREQ @[0,0,0] APE 174 cpu@35.25C tj@36.031C soc012@36.062C VDD_GPU 0mW/0mW "
    "VDD_CPU_SOC_MSS 4923mW/4544mW VIN_SYS_5V0 4327mW/4227mW",
    "r39": "09-01-2026 09:25:18 RAM 5739/7546MB (lfb 1x2MB) SWAP 0/3773MB (cached 0MB) CPU [1%@729,2%@1510] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 33% cpu@50C/51C tj@50.5C/51C VDD_IN 9761mW/9762mW/9763mW "
    "VDD_CPU_GPU_CV 4238mW/4238mW/4238mW",
    "tx2-unprivileged": "RAM 2417/6660MB (lfb 620x4MB) cpu [3%@1996,10%@2035,1%@2035]",
}
"""A line of each generation: those that were published, shortened, and two with a trap put in (a zone that is off, a
rail below zero)."""
