"""Which of a device's thermal zones to believe, by the zone's type: indices change between boots, names do not.

Names met: Nano `AO-therm CPU-therm GPU-therm PLL-therm PMIC-Die thermal-fan-est`; TX2 `BCPU-therm MCPU-therm GPU-therm
PLL-therm Tboard_tegra Tdiode_tegra`; Xavier `CPU-therm GPU-therm AUX-therm AO-therm`; Orin on JetPack 5 `CPU-therm
GPU-therm CV0..2 SOC0..2 tj-thermal`, on 6 `cpu-thermal gpu-thermal cv0..2-thermal soc0..2-thermal tj-thermal`; Thor
`tj soc012 cpu soc345 gpu`; PCs `x86_pkg_temp acpitz`; Raspberry Pi `cpu-thermal`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

# PMIC shows a placeholder of 100 C, the fan's estimate is no sensor, and radios and chargers are other parts.
_NEVER = re.compile(r"pmic|fan|iwlwifi|wifi|charger|battery", re.IGNORECASE)

_AGGREGATE = re.compile(r"tj\b|tj_", re.IGNORECASE)

_PREFERENCE = (
    _AGGREGATE,  # the maximum over the chip
    re.compile(r"x86_pkg_temp", re.IGNORECASE),
    re.compile(r"[bm]?cpu", re.IGNORECASE),  # the TX2 has two clusters, BCPU and MCPU
    re.compile(r"soc|gpu|cv\d", re.IGNORECASE),
    re.compile(r""),
)


def is_usable(zone_type: str) -> bool:
    """Whether a zone of this type measures the chip that computes."""
    return not _NEVER.search(zone_type)


def is_aggregate(zone_type: str) -> bool:
    """Whether the zone is the maximum of the others (`tj`), so that their limits are its limits."""
    return _AGGREGATE.match(zone_type) is not None


def preference(zone_type: str) -> int:
    """0 for the best kind of zone, rising; zones of equal preference are equals, the hottest of them counts."""
    return next(rank for rank, pattern in enumerate(_PREFERENCE) if pattern.match(zone_type))


def hottest_of_best(temperatures_c: Mapping[str, float]) -> float | None:
    """The hottest of the best kind of zone.

    Args:
        temperatures_c: degrees C by zone type, of the zones that answer; others than the chip's are left out.
    """
    usable = {zone: value for zone, value in temperatures_c.items() if is_usable(zone)}
    best = min(map(preference, usable), default=None)
    return max((value for zone, value in usable.items() if preference(zone) == best), default=None)


def throttling_limit_c(trips: Sequence[tuple[str, float]]) -> float | None:
    """Where throttling begins: the lowest passive trip point, else the lowest hot, else the lowest critical.

    Args:
        trips: `(type, degrees C)`. Zero and below are unset trip points. Active ones only start a fan.
    """
    for kind in ("passive", "hot", "critical"):
        limits = [limit_c for trip_kind, limit_c in trips if trip_kind == kind and limit_c > 0.0]
        if limits:
            return min(limits)
    return None
