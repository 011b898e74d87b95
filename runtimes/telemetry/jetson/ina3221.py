"""Power per rail from the INA3221 chips of a Jetson, in the two layouts that its kernels have.

    JetPack 5 and later, hwmon     /sys/class/hwmon/hwmonN/{name,in1_label,in1_input,curr1_input}      mV, mA
                                   /sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmonN/...                the same chip
    JetPack 4, iio                 /sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/
                                       {rail_name_0,in_power0_input}                                   mW

Chips are found by the `name` file and the driver's folder, rails by their labels: the numbers of hwmon, bus and device
change between boots and boards. Channels are 1 to 3 (0 to 2 in iio); hwmon's in4 to in6 are shunt voltages and in7 is
their sum. https://www.kernel.org/doc/html/latest/hwmon/ina3221.html
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nsn_edge.runtimes.telemetry.jetson.rails import NOT_CONNECTED, rail_power_mw
from nsn_edge.runtimes.telemetry.sysfs import SensorFiles

_DRIVERS = "sys/bus/i2c/drivers"


class PowerRails:
    """All rails of all chips. Looked for at every read: that is a handful of small files, and a driver that is bound
    again gets other numbers."""

    def __init__(self, root: Path, files: SensorFiles) -> None:
        self._root = root
        self._files = files

    def read_mw(self) -> dict[str, float]:
        """Power by rail, for the rails that answer."""
        rails: dict[str, float] = {}
        for label, measured_mw in (*self._hwmon(), *self._iio()):
            power_mw = rail_power_mw(measured_mw)
            if power_mw is not None:
                rails.setdefault(label, power_mw)
        return rails

    def _hwmon(self) -> Iterator[tuple[str, float | None]]:
        chips = [
            chip
            for chip in self._files.folders(self._root / "sys/class/hwmon")
            if self._files.text(chip / "name") == "ina3221"
        ]
        if not chips:  # a kernel without the class, or a container that was given the drivers alone
            devices = self._files.folders(self._root / _DRIVERS / "ina3221")
            chips = [chip for device in devices for chip in self._files.folders(device / "hwmon", "hwmon")]
        for chip in chips:
            for channel in (1, 2, 3):
                label = self._files.text(chip / f"in{channel}_label")
                if label is None or label == NOT_CONNECTED:  # its figures are never asked for: each costs the bus
                    continue
                volts_m = self._files.number(chip / f"in{channel}_input")
                amps_m = self._files.number(chip / f"curr{channel}_input")
                yield label, volts_m * amps_m / 1e3 if volts_m is not None and amps_m is not None else None

    def _iio(self) -> Iterator[tuple[str, float | None]]:
        for device in self._files.folders(self._root / _DRIVERS / "ina3221x"):
            for chip in self._files.folders(device, "iio"):
                for channel in (0, 1, 2):
                    label = self._files.text(chip / f"rail_name_{channel}")
                    if label is not None and label != NOT_CONNECTED:
                        yield label, self._files.number(chip / f"in_power{channel}_input")
