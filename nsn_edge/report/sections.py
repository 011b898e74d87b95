"""The first sections: what quality costs, how fast each rung is, what it saves, how the rank follows the device.

A part that is missing gets a sentence, never an empty chart.
"""

from __future__ import annotations

from nsn_edge.report.charts import quality_by_flops, quality_by_latency
from nsn_edge.report.footprint import Footprint
from nsn_edge.report.headline import megabytes, metric_name, milliseconds
from nsn_edge.report.markup import Child, Markup, el
from nsn_edge.report.parts import missing, rung_name, section, table
from nsn_edge.report.profile_view import ProfileView, Rung, percent
from nsn_edge.report.style import RungColours
from nsn_edge.report.timeline import timeline
from nsn_edge.report.views import SimulationView

_SWITCHES_SHOWN = 15


def quality_section(profile: ProfileView, metric: str | None, note: str, colours: RungColours) -> Markup:
    """(a) Quality against measured latency, and against FLOPs."""
    if metric is None:
        body: Child = missing("No quality was measured, so there is nothing to weigh the latency against.")
    else:
        name = metric_name(metric)
        body = [
            el("p", note) if note else None,
            el(
                "div",
                el("figure", el("h3", "Measured on this machine"), quality_by_latency(profile, metric, name, colours)),
                el("figure", el("h3", "Counted"), quality_by_flops(profile, metric, name, colours)),
                class_="pair",
            ),
        ]
    return section("Quality and what it costs", body)


def latency_section(profile: ProfileView, metric: str | None, colours: RungColours) -> Markup:
    """(b) The rungs as a table."""
    settings = profile.settings
    slowest_ms = max(rung.p50_ms for rung in profile.rungs)
    quality = (metric_name(metric).capitalize(),) if metric else ()
    numbers = ("FLOPs", "p50 ms", "× dense", *quality, "p90 ms", "p99 ms", "mean ± std ms", "load ms")
    header = [
        el("th", "Rung", scope="col"),
        el("th", "Median latency", scope="col", class_="m bar"),
        *(el("th", name, scope="col", class_="n") for name in numbers),
    ]
    conditions = ", ".join(
        f"{name} {settings[key]}"
        for key, name in (("batch_size", "batch"), ("sequence_length", "sequence length"), ("threads", "threads"))
        if key in settings
    )
    fewest = min(rung.repetitions for rung in profile.rungs)
    caption = f"{conditions}{'; ' if conditions else ''}at least {fewest} repetitions per rung, rungs interleaved."
    rows = [_latency_row(profile, rung, metric, slowest_ms, colours) for rung in reversed(profile.rungs)]
    memory = (
        f"Peak memory of the process that measured: {profile.peak_memory_mb:.0f} MB, all rungs loaded."
        if profile.peak_memory_mb is not None
        else None
    )
    return section(
        "Latency of each rung",
        table(header, rows, caption, "full"),
        el("p", memory, class_="small soft") if memory else None,
    )


def _latency_row(
    profile: ProfileView, rung: Rung, metric: str | None, slowest_ms: float, colours: RungColours
) -> Markup:
    relative = profile.relative(rung)
    width = f"width:{100 * rung.p50_ms / slowest_ms:.1f}%;background:{colours(rung.rank)}"
    quality = rung.quality.get(metric) if metric else None
    decimals = 0 if rung.mean_ms >= 100 else 1 if rung.mean_ms >= 1 else 2
    cells = [
        f"{rung.flops_fraction * 100:.1f}\N{NO-BREAK SPACE}%",
        milliseconds(rung.p50_ms),
        "–" if relative is None else f"{relative:.2f}",
        *(["–" if quality is None else f"{quality:.3f}"] if metric else []),
        milliseconds(rung.p90_ms),
        milliseconds(rung.p99_ms),
        f"{rung.mean_ms:.{decimals}f} ± {rung.std_ms:.{decimals}f}{'' if rung.steady else ' (unsteady)'}",
        "–" if rung.load_ms is None else milliseconds(rung.load_ms),
    ]
    return el(
        "tr",
        el("th", rung_name(rung.rank, rung.label, colours), scope="row"),
        el("td", el("span", el("i", style=width), class_="meter"), class_="m"),
        [el("td", cell, class_="n") for cell in cells],
    )


def footprint_section(footprint: Footprint | None) -> Markup | None:
    """What is saved on disk; left out altogether when the bundle's facts were not given."""
    if footprint is None:
        return None
    most = max(footprint.bundle_bytes, footprint.separate_bytes, 1)
    bars = (
        (
            "This bundle",
            footprint.bundle_bytes,
            f"of which weights {megabytes(footprint.weights_bytes)} MB, stored once",
        ),
        (f"{footprint.rungs} separate exports", footprint.separate_bytes, "each rung with its own weights"),
    )
    return section(
        "Size on disk",
        el(
            "div",
            [
                [
                    el("span", name),
                    el(
                        "span",
                        el("span", class_="lane", style=f"width:{55 * size / most:.1f}%;background:{colour}"),
                        el("span", el("strong", f"{megabytes(size)} MB"), el("span", f" {what}", class_="soft small")),
                        class_="bar",
                    ),
                ]
                for (name, size, what), colour in zip(bars, ("var(--r0)", "var(--soft)"), strict=True)
            ],
            class_="bars",
        ),
    )


def simulation_section(simulation: SimulationView | None, note: str, colours: RungColours) -> Markup:
    """(c) The replayed trace."""
    title = "The rank follows the device"
    if simulation is None:
        return section(title, missing("No trace was replayed."))
    if not simulation.timeline:
        return section(title, missing(f"The trace {simulation.trace} has no rows."))
    total_s = sum(simulation.time_at_rung_s.values())
    shares = ", ".join(
        f"{percent(simulation.time_at_rung_s[rank] / total_s)} at {label}"
        for rank, label in reversed(list(simulation.labels.items()))
        if total_s > 0 and simulation.time_at_rung_s.get(rank, 0.0) > 0
    )
    rate = f"{simulation.switches_per_minute:.2f} switches per minute. " if simulation.switches_per_minute else ""
    if simulation.queries is not None and simulation.failed_queries is not None:
        rate += f"{simulation.queries} queries were answered meanwhile; {simulation.failed_queries} failed."
    return section(
        title,
        el(
            "p",
            "The trace ",
            el("strong", simulation.trace),
            f" ({note})" if note else None,
            " was replayed through the policy. ",
            _origin(simulation),
        ),
        el("figure", timeline(simulation, colours)),
        el("p", f"Time at each rung: {shares}. " if shares else None, rate, class_="small soft"),
        _switch_table(simulation, colours),
    )


def _origin(simulation: SimulationView) -> str:
    if any(row.latency_ms is not None for row in simulation.timeline):
        return (
            "Battery and temperature come from the trace, the latencies from the machine it was replayed on; "
            "each query has its own length, so they differ from the table's."
        )
    return "Battery and temperature come from the trace."


def _switch_table(simulation: SimulationView, colours: RungColours) -> Markup:
    if not simulation.switches:
        return el("p", "The policy never switched.")
    header = [
        el("th", "No.", scope="col", class_="n"),
        el("th", "Time", scope="col", class_="n"),
        el("th", "From", scope="col", class_="m"),
        el("th", "To", scope="col"),
        el("th", "Why", scope="col"),
    ]
    labels = simulation.labels
    rows = [
        el(
            "tr",
            el("td", str(index), class_="n"),
            el("td", _clock(switch.time_s), class_="n"),
            el("td", rung_name(switch.from_rank, labels.get(switch.from_rank, "?"), colours), class_="m r"),
            el("td", rung_name(switch.to_rank, labels.get(switch.to_rank, "?"), colours), class_="r"),
            el("td", switch.reason),
        )
        for index, switch in enumerate(simulation.switches, start=1)
    ]
    first = table(header, rows[:_SWITCHES_SHOWN], "Every switch and why it happened")
    if len(rows) <= _SWITCHES_SHOWN:
        return first
    rest = table(header, rows[_SWITCHES_SHOWN:], None)
    return el("div", first, el("details", el("summary", f"{len(rows) - _SWITCHES_SHOWN} more switches"), rest))


def _clock(time_s: float) -> str:
    whole = round(time_s)
    hours, minutes, seconds = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
