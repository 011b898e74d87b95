from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import FakeNvml, error
from sensor_tree import write_cpu_clock, write_gpu, write_jetson, write_rapl, write_supply

from nsn_edge.runtimes.doctor import Device, Diagnosis, Finding, Status, examine

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
JETSON = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64\n",
    "sys/firmware/devicetree/base/model": "NVIDIA Jetson Orin Nano Developer Kit\x00",
    "sys/class/thermal/thermal_zone0/type": "tj-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "51250\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "99000\n",
    "sys/class/hwmon/hwmon3/name": "ina3221\n",
    "sys/class/hwmon/hwmon3/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon3/in1_input": "5000\n",
    "sys/class/hwmon/hwmon3/curr1_input": "1200\n",
    "sys/class/hwmon/hwmon3/in2_label": "NC\n",
    "sys/class/hwmon/hwmon3/in3_label": "VDD_GPU\n",
    "sys/class/hwmon/hwmon3/in3_input": "5000\n",
    "sys/class/hwmon/hwmon3/curr3_input": "-8\n",
    "proc/meminfo": "MemTotal: 7500000 kB\nMemAvailable: 600000 kB\n",
}
LAPTOP = {
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14\n",
    "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA RTX A500\nGPU UUID: \t GPU-1234-secret\n",
    "sys/class/power_supply/BAT0/type": "Battery\n",
    "sys/class/power_supply/BAT0/capacity": "73\n",
    "sys/class/power_supply/BAT0/status": "Discharging\n",
    "sys/class/power_supply/BAT0/power_now": "8400000\n",
}


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def device(root: Path, *packages: str, providers: Sequence[str] | Exception = (CPU,), **changes: object) -> Device:
    def available() -> Sequence[str]:
        if isinstance(providers, Exception):
            raise providers
        return providers

    plain: dict[str, object] = {
        "root": root,
        "version_of": lambda name: "1.2.3" if name in packages else None,
        "has_module": lambda name: False,
        "providers": available,
        "nvidia_smi": lambda: None,
        "nvml": lambda: None,
        "pause": lambda: None,
        "disk_free": lambda: 50_000_000_000,
    }
    return Device(**{**plain, **changes})  # type: ignore[arg-type]


def named(diagnosis: Diagnosis, name: str) -> Finding:
    (finding,) = [finding for finding in diagnosis.findings if finding.name == name]
    return finding


def test_a_bare_machine(tmp_path: Path) -> None:
    diagnosis = examine(device(tmp_path, "onnxruntime"))
    assert diagnosis.can_run
    assert named(diagnosis, "onnxruntime").detail == "1.2.3"
    assert named(diagnosis, CPU).status is Status.PRESENT
    for name in (CUDA, "NVIDIA GPU", "Jetson", "battery", "temperature", "power rails", "memory"):
        assert named(diagnosis, name).status is Status.ABSENT, name
    assert named(diagnosis, "torch").install == "pip install 'nsn-edge[export]'"
    assert named(diagnosis, "tokenizers").install == "pip install 'nsn-edge[ort]'"
    # What would be of no use here is not recommended.
    assert named(diagnosis, CUDA).install is None
    assert named(diagnosis, "NVML bindings").install is None
    assert named(diagnosis, "CUDA bindings").install is None


def test_a_jetson(tmp_path: Path) -> None:
    diagnosis = examine(device(tree(tmp_path, JETSON), "onnxruntime", has_module=lambda name: name == "tensorrt"))
    assert named(diagnosis, "Jetson").detail == "NVIDIA Jetson Orin Nano Developer Kit, L4T 36.4.3 (JetPack 6.1 or 6.2)"
    assert named(diagnosis, "temperature").detail == "51.2 °C, throttles at 99.0 °C"
    assert named(diagnosis, "power rails").detail == "VDD_IN 6000 mW, VDD_GPU 0 mW"
    assert named(diagnosis, "tensorrt").status is Status.PRESENT
    assert named(diagnosis, "CUDA bindings").install == "pip install 'nsn-edge[tensorrt]'"
    assert "JetPack" in (named(diagnosis, CUDA).install or "")
    assert named(diagnosis, "memory").status is Status.FAULTY
    assert "little" in named(diagnosis, "memory").detail


def test_a_laptop(tmp_path: Path) -> None:
    diagnosis = examine(device(tree(tmp_path, LAPTOP), "onnxruntime"))
    assert named(diagnosis, "NVIDIA GPU").detail == "NVIDIA RTX A500"
    assert named(diagnosis, "battery").detail == "73 %"
    assert named(diagnosis, "mains").detail == "on battery"
    assert named(diagnosis, "battery power").detail == "8400 mW"
    assert "ort-gpu" in (named(diagnosis, CUDA).install or "")
    assert named(diagnosis, "NVML bindings").install == "pip install 'nsn-edge[nvml]'"
    assert "secret" not in json.dumps(diagnosis.to_json())


def test_nvidia_smi_lists_every_gpu(tmp_path: Path) -> None:
    listed = "NVIDIA H100, 570.1, 81559 MiB\nNVIDIA H100, 570.1, 81559 MiB\n"
    diagnosis = examine(device(tree(tmp_path, LAPTOP), "onnxruntime-gpu", nvidia_smi=lambda: listed))
    gpus = [finding.detail for finding in diagnosis.findings if finding.name == "NVIDIA GPU"]
    assert gpus == listed.splitlines()


def test_a_gpu_build_without_a_gpu(tmp_path: Path) -> None:
    diagnosis = examine(device(tmp_path, "onnxruntime-gpu", providers=(CUDA, CPU)))
    assert named(diagnosis, CUDA).status is Status.FAULTY
    assert "no NVIDIA GPU" in named(diagnosis, CUDA).detail
    assert diagnosis.can_run


def test_without_an_engine(tmp_path: Path) -> None:
    diagnosis = examine(device(tmp_path, providers=ImportError("No module named 'onnxruntime'")))
    assert not diagnosis.can_run
    engine = named(diagnosis, "onnxruntime")
    assert (engine.status, engine.install) == (Status.ABSENT, "pip install 'nsn-edge[ort]'")


@pytest.mark.parametrize("error", [ImportError("libstdc++.so.6"), AttributeError("_ARRAY_API not found")])
def test_a_broken_engine(tmp_path: Path, error: Exception) -> None:
    diagnosis = examine(device(tmp_path, "onnxruntime", providers=error))
    assert not diagnosis.can_run
    engine = named(diagnosis, "onnxruntime")
    assert engine.status is Status.FAULTY
    assert str(error) in engine.detail


@pytest.mark.parametrize("name", ["version_of", "has_module", "providers", "nvidia_smi", "nvml", "disk_free"])
def test_any_fault_is_survived(tmp_path: Path, name: str) -> None:
    def fail(*arguments: object) -> object:
        raise OSError("the device\nis gone")

    if name == "nvml":  # asked only where there is a GPU, here one that does not show
        tree(tmp_path, {"proc/driver/nvidia/version": "NVRM version: 550\n"})
    diagnosis = examine(replace(device(tmp_path, "onnxruntime"), **{name: fail}))
    faulty = [finding for finding in diagnosis.findings if finding.status is Status.FAULTY]
    told = [finding for finding in faulty if "OSError: the device is gone" in finding.detail]
    assert told
    assert told == faulty or name == "nvml"
    assert {finding.area for finding in diagnosis.findings} == {"engines", "gpus", "sensors", "tools", "machine"}


def test_sensors_that_do_not_answer(tmp_path: Path) -> None:
    tree(tmp_path, JETSON)
    gated = tmp_path / "sys/class/thermal/thermal_zone0/temp"
    gated.unlink()
    os.mkfifo(gated)
    (tmp_path / "sys/class/hwmon/hwmon3/curr1_input").unlink()
    keeper = os.open(gated, os.O_RDWR | os.O_NONBLOCK)
    try:
        diagnosis = examine(device(tmp_path, "onnxruntime"))
    finally:
        os.close(keeper)
    assert named(diagnosis, "temperature").status is Status.ABSENT
    assert named(diagnosis, "temperature").detail == "asleep (EAGAIN): /sys/class/thermal/thermal_zone0/temp"
    assert named(diagnosis, "power rails").detail == "VDD_GPU 0 mW"


def test_every_sensor_of_a_laptop_says_its_value_and_unit(tmp_path: Path) -> None:
    tree(tmp_path, LAPTOP)
    write_supply(tmp_path, "BAT0", {"energy_now": 25_000_000, "energy_full": 50_000_000})
    write_cpu_clock(tmp_path, 0, 2_800_000)
    write_gpu(tmp_path, "active", "auto")
    write_rapl(tmp_path, "0", "package-0", 1_000_000)
    nvml = FakeNvml(nvmlDeviceGetTotalEnergyConsumption=error("NOT_SUPPORTED"))
    pauses: list[object] = []

    def pause() -> None:
        pauses.append(write_rapl(tmp_path, "0", "package-0", 2_000_000))

    diagnosis = examine(device(tmp_path, "onnxruntime", nvml=lambda: nvml, pause=pause))
    assert named(diagnosis, "energy left").detail == "25.0 Wh (90000 J)"
    assert named(diagnosis, "processor clock").detail == "2800 MHz"
    assert named(diagnosis, "processor energy").status is Status.PRESENT
    assert len(pauses) == 1
    assert named(diagnosis, "GPU").detail == (
        "61 °C, 12345 mW, load 37 %, 1410 MHz; not supported: TotalEnergyConsumption"
    )
    assert nvml.open == 0


def test_a_sleeping_gpu_is_not_woken_by_the_doctor(tmp_path: Path) -> None:
    tree(tmp_path, LAPTOP)
    write_gpu(tmp_path, "suspended", "auto")
    nvml = FakeNvml()
    assert named(examine(device(tmp_path, nvml=lambda: nvml)), "GPU").detail == "sleeps, and was not woken"
    assert nvml.inits == 0


def test_a_gpu_whose_driver_does_not_answer(tmp_path: Path) -> None:
    nvml = FakeNvml(init=error("DRIVER_NOT_LOADED"))
    finding = named(examine(device(tree(tmp_path, LAPTOP), nvml=lambda: nvml)), "GPU")
    assert (finding.status, finding.detail) == (Status.FAULTY, "NVML does not answer; nvidia-smi says more")
    board = named(examine(device(tree(tmp_path / "jetson", JETSON), nvml=lambda: nvml)), "GPU")
    assert (board.status, board.detail) == (Status.ABSENT, "NVML does not answer")


@pytest.mark.parametrize(
    ("code", "status", "detail"),
    [
        (errno.EACCES, Status.FAULTY, "no permission: /sys/class/powercap/intel-rapl:0/energy_uj is for root alone"),
        (errno.EAGAIN, Status.ABSENT, "asleep (EAGAIN): /sys/class/powercap/intel-rapl:0/energy_uj"),
        (errno.EIO, Status.FAULTY, "/sys/class/powercap/intel-rapl:0/energy_uj answers EIO: Input/output error"),
    ],
)
def test_a_sensor_that_is_there_and_refuses_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, status: Status, detail: str
) -> None:
    refused = write_rapl(tmp_path, "0", "package-0", 1) / "energy_uj"
    real = os.open

    def guard(path: Any, *arguments: Any, **keywords: Any) -> int:
        if Path(path) == refused:
            raise OSError(code, os.strerror(code))
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", guard)
    finding = named(examine(device(tmp_path)), "processor energy")
    assert finding.status is status
    assert finding.detail.startswith(detail)
    allow = "sudo chmod a+r /sys/class/powercap/intel-rapl:0/energy_uj"
    assert finding.install == (allow if code == errno.EACCES else None)


def test_what_a_jetson_has_besides(tmp_path: Path) -> None:
    tree(tmp_path, JETSON)
    tree(
        tmp_path,
        {
            "sys/class/hwmon/hwmon4/name": "soctherm_oc\n",
            "sys/class/hwmon/hwmon4/oc1_event_cnt": "7\n",
            "sys/devices/platform/gpu.0/load": "371\n",
            "sys/class/devfreq/17000000.gpu/cur_freq": "624750000\n",
        },
    )
    diagnosis = examine(device(tmp_path, "onnxruntime"))
    assert named(diagnosis, "over-current").detail == "quiet"
    assert named(diagnosis, "GPU load").detail == "37 %"
    assert named(diagnosis, "GPU clock").detail == "625 MHz"


def test_a_driver_without_a_gpu(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/driver/nvidia/version": "NVRM version: 550\n"})
    assert named(examine(device(tmp_path, "onnxruntime")), "NVIDIA GPU").status is Status.FAULTY


def test_this_machine_and_its_json() -> None:
    data = json.loads(json.dumps(examine().to_json(), allow_nan=False))
    assert (data["schema_version"], data["kind"]) == (1, "doctor")
    assert data["can_run"] is True  # the tests need onnxruntime too
    for finding in data["findings"]:
        assert set(finding) == {"area", "name", "status", "detail", "gives", "install"}
        assert finding["status"] in {"present", "absent", "faulty"}
        assert finding["detail"]


@pytest.mark.parametrize(
    ("generation", "jetpack", "tensorrt", "libraries", "mode"),
    [
        (
            5,
            "L4T 35.4.1 (JetPack 5.1.2)",
            "8.5.2.2",
            "cudart 11.4.298, cudnn 8.6.0, nvinfer 8.5.2.2",
            "MODE_15W_6CORE (2)",
        ),
        (6, "L4T 36.4.3 (JetPack 6.1 or 6.2)", "10.3.0", "cudart 12.6.68, cudnn 9.3.0, nvinfer 10.3.0", "MAXN (0)"),
        (7, "L4T 38.2.0 (JetPack 7.0)", "10.13.3", "cudart 13.0.48, cudnn 9.12.0, nvinfer 10.13.3", "120W (1)"),
    ],
)
def test_generations_of_jetpack(
    tmp_path: Path, generation: int, jetpack: str, tensorrt: str, libraries: str, mode: str
) -> None:
    root = write_jetson(tmp_path, generation)
    seen = examine(device(root, "onnxruntime", has_module=lambda name: name == "tensorrt"))
    assert named(seen, "Jetson").detail.endswith(jetpack)
    assert (named(seen, "tensorrt").status, named(seen, "tensorrt").detail) == (Status.PRESENT, tensorrt)
    assert named(seen, "CUDA libraries").detail == libraries
    assert named(seen, "CUDA driver").detail == "libcuda 1.1"
    assert named(seen, "power mode").detail == mode
    assert (named(seen, "NVML").status is Status.PRESENT) == (generation == 7)
    assert named(seen, "tensorrt-rtx").install is None  # it is for cards
    # A virtual environment that does not see the system's packages.
    hidden = named(examine(device(root, "onnxruntime")), "tensorrt")
    assert hidden.status is Status.FAULTY
    assert hidden.detail.startswith(f"{tensorrt} is in /usr/lib/python3.")
    assert "--system-site-packages" in (hidden.install or "")


def test_a_jetson_with_little_installed(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {**JETSON, "var/lib/nvpmodel/status": "pmode:0007\n", "etc/nv_tegra_release": "# R40 (release), REVISION: 1.0"},
    )
    diagnosis = examine(device(tmp_path, "onnxruntime"))
    assert named(diagnosis, "Jetson").detail == "NVIDIA Jetson Orin Nano Developer Kit, L4T 40.1.0"  # a JetPack to come
    assert named(diagnosis, "power mode").detail == "number 7"
    assert named(diagnosis, "tensorrt").install == "sudo apt install python3-libnvinfer"
    assert named(diagnosis, "CUDA driver").status is Status.FAULTY
    assert named(diagnosis, "CUDA libraries").install == "sudo apt install nvidia-jetpack"


def test_swap_is_told(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/meminfo": "MemTotal: 7500000 kB\nMemAvailable: 6000000 kB\nSwapTotal: 3900000 kB\n"})
    assert named(examine(device(tmp_path, "onnxruntime")), "memory").detail == "6.1 of 7.7 GB available, swap 4.0 GB"
