"""Batteries and mains on Linux: `/sys/class/power_supply/*`.

Files used per supply: `type scope present status online capacity energy_now energy_full charge_now charge_full
voltage_min_design voltage_now power_now current_now`; micro-units, percent for `capacity`. The sign of `power_now` and
`current_now` means nothing that drivers agree on, so the magnitude is taken and the direction comes from `status`.
https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-class-power
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nsn_edge.runtimes.telemetry.base import Clock, Reading
from nsn_edge.runtimes.telemetry.sysfs import SensorFiles

_J_PER_UWH = 3600e-6
_BATTERY_TYPES = frozenset({"Battery", "UPS"})
_ADAPTER_TYPES = frozenset({"Mains", "USB", "Wireless"})


@dataclass(frozen=True)
class _Battery:
    status: str | None
    charge_pct: float | None
    full_uwh: float | None
    left_uwh: float | None
    power_mw: float | None


class LinuxBattery:
    """All system batteries as one, and whether they pay. A mouse's battery (`scope` Device) is not ours."""

    def __init__(self, root: Path = Path("/"), clock: Clock = time.monotonic) -> None:
        """
        Args:
            root: where `sys/` is.
            clock: monotonic seconds.
        """
        self._folder = root / "sys/class/power_supply"
        self._clock = clock
        self._files = SensorFiles(clock)

    def read(self) -> Reading:
        """Battery, mains, power and energy left; None for each that the device does not tell."""
        batteries: list[_Battery] = []
        adapters: list[float] = []
        for supply in self._files.folders(self._folder):
            if self._files.text(supply / "scope") == "Device":
                continue
            kind = self._files.text(supply / "type")
            if kind in _BATTERY_TYPES:
                if self._files.number(supply / "present") != 0.0:
                    batteries.append(self._battery(supply))
            elif kind in _ADAPTER_TYPES:
                online = self._files.number(supply / "online")
                if online is not None:
                    adapters.append(online)
        return Reading(
            time_s=self._clock(),
            battery_pct=_total_pct(batteries),
            on_mains=_on_mains([battery.status for battery in batteries], adapters),
            power_mw=_total_power_mw(batteries),
            battery_j=_total_j(batteries),
        )

    @property
    def refusals(self) -> Mapping[Path, int]:
        """Files that did not answer lately, and with which error."""
        return self._files.refusals

    def _battery(self, supply: Path) -> _Battery:
        def micro(name: str) -> float | None:
            return self._files.number(supply / name)

        now, full = micro("energy_now"), micro("energy_full")
        left_uwh, full_uwh = now, full
        if now is None or full is None:
            charge_now, charge_full = micro("charge_now"), micro("charge_full")
            if charge_now is not None and charge_full is not None:
                now, full = charge_now, charge_full
            # Cells lose voltage as they empty: the nominal one gives the energy that a full charge delivers.
            voltage_uv = micro("voltage_min_design") or micro("voltage_now")
            if left_uwh is None and charge_now is not None and voltage_uv is not None:
                left_uwh = charge_now * voltage_uv / 1e6
            if full_uwh is None and charge_full is not None and voltage_uv is not None:
                full_uwh = charge_full * voltage_uv / 1e6
        pct = micro("capacity")
        if pct is None and now is not None and full:
            pct = 100.0 * now / full
        # Worn gauges go a little over 100; below 0 is nonsense.
        pct = min(pct, 100.0) if pct is not None and pct >= 0.0 else None
        if left_uwh is None and full_uwh is not None and pct is not None:
            left_uwh = full_uwh * pct / 100.0
        power_uw = micro("power_now")
        if power_uw is None:
            current_ua, voltage_uv = micro("current_now"), micro("voltage_now")
            power_uw = current_ua * voltage_uv / 1e6 if current_ua is not None and voltage_uv is not None else None
        return _Battery(
            status=self._files.text(supply / "status"),
            charge_pct=pct,
            full_uwh=full_uwh if full_uwh is not None and full_uwh > 0.0 else None,
            left_uwh=left_uwh if left_uwh is not None and left_uwh >= 0.0 else None,
            power_mw=abs(power_uw) / 1e3 if power_uw is not None else None,
        )


def _total_pct(batteries: Sequence[_Battery]) -> float | None:
    """Charge of the batteries that answer, weighted by what each holds when full; equally if one does not say."""
    known = [(battery.charge_pct, battery.full_uwh) for battery in batteries if battery.charge_pct is not None]
    if not known:
        return None
    sizes = [size for _, size in known if size is not None]
    weights = sizes if len(sizes) == len(known) else [1.0] * len(known)
    total = sum(pct * weight for (pct, _), weight in zip(known, weights, strict=True))
    return min(total / sum(weights), 100.0)


def _on_mains(statuses: Sequence[str | None], adapters: Sequence[float]) -> bool | None:
    """Who pays. One battery of several may idle ("Not charging") while another discharges, and an adapter may be online
    and yet too weak, so what the batteries do outranks what the adapters claim. `online` may be 0, 1 or 2."""
    if "Charging" in statuses:
        return True
    if "Discharging" in statuses:
        return False
    if adapters:
        return any(online >= 1.0 for online in adapters)
    if "Full" in statuses or "Not charging" in statuses:
        return True
    return None


def _total_power_mw(batteries: Sequence[_Battery]) -> float | None:
    """What the discharging batteries deliver; a charging battery's figure says nothing about the device."""
    powers = [battery.power_mw for battery in batteries if battery.status == "Discharging"]
    known = [power for power in powers if power is not None]
    return sum(known) if known and len(known) == len(powers) else None


def _total_j(batteries: Sequence[_Battery]) -> float | None:
    """What is left in all of them. One that does not say makes the sum unknown: a part of it would promise too little,
    and the whole of it on the next read too much."""
    left = [battery.left_uwh for battery in batteries]
    known = [uwh for uwh in left if uwh is not None]
    return sum(known) * _J_PER_UWH if known and len(known) == len(left) else None
