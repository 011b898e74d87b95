"""What the numbers mean, in a sentence and four facts. Every number comes from the data."""

from __future__ import annotations

from nsn_edge.report.footprint import Footprint
from nsn_edge.report.profile_view import ProfileView, Rung, percent
from nsn_edge.report.views import SimulationView, VerificationView

METRIC_NAMES = {
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
    "accuracy": "accuracy",
    "cosine": "cosine similarity",
    "perplexity": "perplexity",
}
"""How metrics are called in prose; others keep the name they have in the bundle."""


def choose_metric(profile: ProfileView) -> str | None:
    """The quality metric that most rungs have; Spearman where there is a choice. None without any."""
    counts: dict[str, int] = {}
    for rung in profile.rungs:
        for name in rung.quality:
            counts[name] = counts.get(name, 0) + 1
    return min(counts, key=lambda name: (-counts[name], name != "spearman", name), default=None)


def metric_name(metric: str) -> str:
    """A metric's name for people."""
    return METRIC_NAMES.get(metric, metric)


def headline(profile: ProfileView, metric: str | None) -> str:
    """One sentence about the factored rung nearest to half of the linear FLOPs."""
    factored = [rung for rung in profile.rungs if not rung.dense]
    if not factored:
        return f"{profile.model} answers in {milliseconds(profile.rungs[-1].p50_ms)} ms on this machine"
    rung = min(factored, key=lambda rung: abs(rung.flops_fraction - 0.5))
    quality = (
        f", keeping a {metric_name(metric)} of {rung.quality[metric]:.2f}" if metric and metric in rung.quality else ""
    )
    return f"At {percent(rung.flops_fraction)} of the linear FLOPs this machine answers {_time(profile, rung)}{quality}"


def _time(profile: ProfileView, rung: Rung) -> str:
    relative = profile.relative(rung)
    if relative is None:
        return f"in {milliseconds(rung.p50_ms)} ms"
    return f"in {relative:.2f} of the dense time" if relative <= 1 else f"in {relative:.2f} times the dense time"


def facts(
    profile: ProfileView,
    footprint: Footprint | None,
    simulation: SimulationView | None,
    verification: VerificationView | None,
) -> list[tuple[str, str]]:
    """Short facts: `(the figure, what it is)`."""
    fastest, slowest = (pick(rung.p50_ms for rung in profile.rungs) for pick in (min, max))
    levels = f"{len(profile.rungs)} rung{'s' if len(profile.rungs) != 1 else ''} of one model"
    found = [(f"{milliseconds(fastest)} to {milliseconds(slowest)} ms", f"median latency, {levels}")]
    if energies := [rung.energy_mj for rung in profile.rungs if rung.energy_mj is not None]:
        spent = f"{milliseconds(min(energies))} to {milliseconds(max(energies))} mJ"
        found.append((spent, "per call, beyond what the device draws idle"))
    if len(profile.grid) > 1:
        found.append((str(len(profile.grid)), "configurations of form, batch and sequence"))
    if footprint:
        found.append(
            (
                f"{megabytes(footprint.bundle_bytes)} MB",
                f"on disk, against {megabytes(footprint.separate_bytes)} MB for {footprint.rungs} separate exports",
            )
        )
    if simulation:
        queries = (
            f"of rank while {simulation.queries} queries ran; {simulation.failed_queries} of them failed"
            if simulation.queries is not None and simulation.failed_queries is not None
            else "of rank during the trace"
        )
        count = len(simulation.switches)
        found.append((f"{count} switch{'es' if count != 1 else ''}", queries))
    if verification and verification.checks:
        passed = sum(check.passed for check in verification.checks)
        found.append((f"{passed} of {len(verification.checks)}", "graphs agree with torch within the tolerance"))
    return found


def milliseconds(value: float) -> str:
    """Three significant digits or so."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def megabytes(value: float) -> str:
    """10^6 bytes."""
    return f"{value / 1e6:.0f}" if value >= 1e7 else f"{value / 1e6:.2g}"
