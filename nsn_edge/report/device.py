"""What a rung takes besides time, and how the device was meanwhile: energy, memory, heat and clocks over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nsn_edge.report.axes import Frame, Scale, tick_labels, ticks, time_ticks, x_axis, y_axis
from nsn_edge.report.headline import milliseconds
from nsn_edge.report.markup import Child, Markup, el
from nsn_edge.report.parts import missing, rung_name, section, table
from nsn_edge.report.profile_view import Conditions, ProfileView, Rung
from nsn_edge.report.style import RungColours

_LANE, _GAP = 96, 34
_LEFT, _TOP = 46, 26
_WIDE, _NARROW = 940, 400  # the second for phones, where text of the first could not be read


def energy_section(profile: ProfileView, colours: RungColours) -> Markup | None:
    """Energy of a call at each rung; nothing where it was not asked for."""
    if profile.energy_method is None:
        return None
    known = [rung for rung in profile.rungs if rung.energy_mj is not None]
    title = "Energy of an answer"
    if not known:
        return section(title, missing(f"Unknown: {profile.energy_method}."))
    most = max(_mj(rung) for rung in known)
    dense = next((rung for rung in known if rung.dense), None)
    names = ("mJ per call", "× dense", "W beyond idle", "calls per Wh")
    header = [
        el("th", "Rung", scope="col"),
        el("th", "Energy", scope="col", class_="m bar"),
        *(el("th", name, scope="col", class_="n") for name in names),
    ]
    rows = []
    for rung in reversed(known):
        energy = _mj(rung)
        width = f"width:{100 * energy / most:.1f}%;background:{colours(rung.rank)}"
        cells = (
            milliseconds(energy),
            "–" if dense is None else f"{energy / _mj(dense):.2f}",
            f"{energy / rung.mean_ms:.3g}" if rung.mean_ms > 0 else "–",
            f"{3.6e6 / energy:,.0f}",
        )
        rows.append(
            el(
                "tr",
                el("th", rung_name(rung.rank, rung.label, colours), scope="row"),
                el("td", el("span", el("i", style=width), class_="meter"), class_="m"),
                [el("td", cell, class_="n") for cell in cells],
            )
        )
    idle = f"Idle, the device draws {profile.idle_mw / 1e3:.3g} W, which is not in it. " if profile.idle_mw else ""
    return section(
        title,
        table(header, rows, f"Measured at {profile.name}.", "full"),
        el("p", idle, f"Method: {profile.energy_method}.", class_="small soft"),
    )


def memory_section(profile: ProfileView, colours: RungColours) -> Markup | None:
    """Resident memory; nothing where none was measured."""
    memory = profile.memory
    numbers = [memory.get(key) for key in ("before_mb", "loaded_mb", "after_mb")]
    if profile.peak_memory_mb is None or any(number is None for number in numbers):
        return None
    before, loaded, after = (float(number) for number in numbers if number is not None)
    bars = [
        ("Before loading", before, "Python, the engine's library"),
        ("Every rung loaded", loaded, "and run once"),
        ("After measuring", after, "every rung loaded"),
        ("Peak", profile.peak_memory_mb, "" if memory.get("peak_is_own") else "of the whole process so far"),
    ]
    most = max(size for _, size, _ in bars)
    added = [rung for rung in profile.rungs if rung.memory_mb is not None]
    one_graph = len({rung.memory_mb for rung in added}) == 1 and len(added) > 1
    on_gpu = memory.get("device_mb")
    shares = [
        _bar(rung_name(rung.rank, rung.label, colours), max(size, 0.0), "", most, colours(rung.rank), f"{size:+.1f} MB")
        for rung in reversed(added)
        if (size := rung.memory_mb) is not None
    ]
    return section(
        "Memory",
        el("div", [_bar(name, size, what, most) for name, size, what in bars], class_="bars"),
        el("p", f"One graph serves every rank; it added {added[0].memory_mb:.0f} MB.", class_="small soft")
        if one_graph
        else [
            el("h3", "What each rung added", style="margin-top:20px"),
            el("div", shares, class_="bars"),
            el(
                "p",
                "Resident memory, rungs loaded from the lowest up. Mapped weights count for the first rung that "
                "touches them.",
                class_="small soft",
            ),
        ]
        if added
        else None,
        el("p", f"On the GPU: {float(on_gpu):.0f} MB more in use than before.", class_="small soft")
        if on_gpu is not None
        else None,
    )


def _bar(
    name: Child, size_mb: float, what: str, most_mb: float, colour: str = "var(--soft)", said: str | None = None
) -> list[Markup]:
    lane = el("span", class_="lane", style=f"width:{55 * size_mb / most_mb:.1f}%;background:{colour}")
    told = el("span", el("strong", said or f"{size_mb:.0f} MB"), el("span", f" {what}", class_="soft small"))
    return [el("span", name), el("span", lane, told, class_="bar")]


def conditions_section(profile: ProfileView, colours: RungColours) -> Markup | None:
    """Heat, clock and latency over the measurement, and the verdicts; nothing where nobody watched."""
    views = [view for view in (profile.grid or (profile,)) if view.conditions is not None]
    if not views:
        return None
    first = views[0]
    assert first.conditions is not None
    charts = [_over_time(first, first.conditions, colours, width) for width in (_WIDE, _NARROW)]
    return section(
        "How the device was meanwhile",
        el("p", _verdict(first.conditions)),
        [el("figure", chart, class_=kind) for chart, kind in zip(charts, ("wide", "narrow"), strict=True)]
        if charts[0] is not None
        else missing("Too little was measured to draw it over time."),
        _conditions_table(views),
    )


def _verdict(seen: Conditions) -> str:
    steady = {
        True: "It was thermally steady.",
        False: "It was not steady: temperature or latency changed while it was measured.",
        None: "Whether it was thermally steady cannot be told: the measurement was short, or there is no thermometer.",
    }[seen.steady]
    throttled = {True: " It throttled.", False: " It did not throttle.", None: ""}[seen.throttled]
    mode = f" Power mode: {seen.power_mode}." if seen.power_mode else ""
    return steady + throttled + mode


def _over_time(view: ProfileView, seen: Conditions, colours: RungColours, width: int) -> Markup | None:
    """Lanes below each other on one time axis: temperature, clock, and each rung's latency against its own median."""
    if seen.duration_s <= 0:
        return None
    right = width - 20.0
    x = Scale(0.0, seen.duration_s, _LEFT, right)
    warmth = [(s.time_s, s.temperature_c) for s in seen.samples if s.temperature_c is not None]
    clocks = [(s.time_s, s.clock_mhz) for s in seen.samples if s.clock_mhz is not None]
    lanes: list[Callable[[Frame], Markup]] = []
    if len(warmth) > 1:
        lanes.append(lambda frame: _curve(frame, x, warmth, "temperature, °C", least=2.0))
    if len(clocks) > 1:
        lanes.append(lambda frame: _curve(frame, x, clocks, "clock, MHz", least=100.0))
    if any(len(rung.turns_ms) > 1 for rung in view.rungs):
        lanes.append(lambda frame: _latencies(frame, x, seen.duration_s, view.rungs, colours))
    if not lanes:
        return None
    frames = [
        Frame(_LEFT, _TOP + index * (_LANE + _GAP), right, _TOP + index * (_LANE + _GAP) + _LANE)
        for index in range(len(lanes))
    ]
    seconds, unit_s, unit = time_ticks(seen.duration_s, 10 if width == _WIDE else 4)
    labels = tick_labels([value / unit_s for value in seconds])
    body = [lane(frame) for lane, frame in zip(lanes, frames, strict=True)]
    body.append(x_axis(frames[-1], x, seconds, labels, f"time, {unit}; {view.name}"))
    label = f"Temperature, clock and latency over {seen.duration_s:.0f} seconds of measuring {view.name}"
    return el("svg", body, viewBox=f"0 0 {width} {frames[-1].bottom + 48:.0f}", role="img", aria_label=label)


def _curve(frame: Frame, x: Scale, points: Sequence[tuple[float, float]], name: str, least: float) -> Markup:
    values = [value for _, value in points]
    middle, half = (max(values) + min(values)) / 2, max((max(values) - min(values)) * 0.6, least / 2)
    y = Scale(middle - half, middle + half, frame.bottom, frame.top)
    marks = ticks(y.low, y.high, 4)
    return el(
        "g",
        el("text", name, x=frame.left, y=frame.top - 8, class_="title"),
        y_axis(frame, y, marks, tick_labels(marks)),
        el("polyline", points=" ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in points), class_="curve"),
    )


def _latencies(frame: Frame, x: Scale, duration_s: float, rungs: Sequence[Rung], colours: RungColours) -> Markup:
    """Each rung's turns against its median; what lies beyond the scale is drawn at its edge."""
    ratios = {rung.rank: [turn / rung.p50_ms for turn in rung.turns_ms] for rung in rungs if rung.p50_ms > 0}
    ordered = sorted(ratio for own in ratios.values() for ratio in own)
    # The worst hundredth would flatten all the rest.
    inner = ordered[len(ordered) // 100 : len(ordered) - len(ordered) // 100]
    y = Scale(min(inner[0], 0.95), max(inner[-1], 1.05), frame.bottom, frame.top)
    marks = ticks(y.low, y.high, 4)
    paths = []
    for rank, own in ratios.items():
        places = [
            f"M{x((index + 0.5) / len(own) * duration_s):.1f} {y(min(max(ratio, y.low), y.high)):.1f}h0"
            for index, ratio in enumerate(own)
        ]
        style = f"stroke:{colours(rank)}"
        paths.append(el("path", d="".join(places), style=style, stroke_width=3.4, stroke_linecap="round"))
    return el(
        "g",
        el("text", "latency of each turn, × its rung's median", x=frame.left, y=frame.top - 8, class_="title"),
        y_axis(frame, y, marks, tick_labels(marks)),
        paths,
    )


def _conditions_table(views: Sequence[ProfileView]) -> Markup:
    names = ("seconds", "°C", "°C per min", "latency", "steady", "throttled")
    header = [
        el("th", "Configuration", scope="col"),
        *(el("th", name, scope="col", class_="n") for name in names),
    ]
    said = {True: "yes", False: "no", None: "–"}
    rows = []
    for view in views:
        seen = view.conditions
        assert seen is not None
        warmth = [sample.temperature_c for sample in seen.samples if sample.temperature_c is not None]
        slope, change = seen.temperature_slope_c_per_min, seen.latency_change
        cells = (
            f"{seen.duration_s:.0f}",
            f"{warmth[0]:.0f} to {warmth[-1]:.0f}" if warmth else "–",
            "–" if slope is None else f"{slope:+.1f}",
            "–" if change is None else f"{change:+.1%}",
            said[seen.steady],
            said[seen.throttled],
        )
        rows.append(el("tr", el("th", view.name, scope="row"), [el("td", cell, class_="n") for cell in cells]))
    caption = (
        "Steady: from the first third of the measurement to the last the temperature changed by at most "
        "2\N{NO-BREAK SPACE}°C and latency by at most 5\N{NO-BREAK SPACE}%, over 30 seconds or more."
    )
    return table(header, rows, caption)


def _mj(rung: Rung) -> float:
    assert rung.energy_mj is not None
    return rung.energy_mj
