from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nsn_edge.bundle import Bundle
from nsn_edge.errors import NsnEdgeError
from nsn_edge.report import Footprint, ReportData, build_report, save_report

Sample = Callable[[], ReportData]

VOID = {"meta", "br", "col"}
HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=y>"


class Page(HTMLParser):
    """Checks the nesting and gathers what a test asks for."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.all_text = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.all_text += data + " "
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_it_is_one_file(report_data: Sample) -> None:
    text = build_report(report_data())
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a", "audio", "video"}
    for tag, attributes in page.tags:
        assert not {"src", "href", "srcset", "xlink:href", "data", "action"} & set(attributes), tag
        assert not any(name.startswith("on") for name in attributes), tag
    assert not re.search(r"https?:|//[a-z]|@import|url\(|javascript:", text)
    (policy,) = (meta for meta in page.named("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_it_is_written_for_everyone(report_data: Sample) -> None:
    page = Page(build_report(report_data()))
    assert page.named("html") == [{"lang": "en"}]
    assert len(page.named("h1")) == len(page.named("main")) == 1
    assert len(page.named("svg")) == 4  # two charts; the timeline, wide and narrow
    for svg in page.named("svg"):
        assert svg["role"] == "img"
        assert len(svg["aria-label"] or "") > 40
    assert all(attributes.get("scope") in {"col", "row"} for attributes in page.named("th"))
    assert len(page.named("caption")) == len(page.named("table")) == 3
    assert any(meta.get("name") == "viewport" for meta in page.named("meta"))


def test_the_headline_is_the_data(report_data: Sample) -> None:
    data = report_data()
    rung = next(rung for rung in data.profile["rungs"] if rung["rank"] == 96)
    dense = data.profile["rungs"][-1]
    rung["p50_ms"], dense["p50_ms"], rung["quality"]["spearman"] = 11.0, 20.0, 0.7654
    (headline,) = Page(build_report(data)).texts["h1"]
    assert plain(headline) == (
        "At 50 % of the linear FLOPs this machine answers in 0.55 of the dense time, "
        "keeping a Spearman correlation of 0.77."
    )


def test_a_slower_rung_is_not_praised(report_data: Sample) -> None:
    data = report_data()
    data.profile["rungs"][2]["p50_ms"] = 30.0
    (headline,) = Page(build_report(data)).texts["h1"]
    assert f"in {30.0 / 21.5:.2f} times the dense time" in headline


def test_headlines_of_unusual_ladders(report_data: Sample) -> None:
    data = report_data()
    without_dense = {**data.profile, "rungs": data.profile["rungs"][:-1]}
    (headline,) = Page(build_report(replace(data, profile=without_dense))).texts["h1"]
    assert "this machine answers in 12.7 ms" in headline
    dense_only = {**data.profile, "rungs": data.profile["rungs"][-1:]}
    (headline,) = Page(build_report(replace(data, profile=dense_only))).texts["h1"]
    assert headline == "all-MiniLM-L6-v2 answers in 21.5 ms on this machine."


def test_the_tables_hold_the_data(report_data: Sample) -> None:
    data = report_data()
    text = plain(Page(build_report(data)).all_text)
    for rung in data.profile["rungs"]:
        assert f"{rung['flops_fraction'] * 100:.1f} %" in text
        assert f"{rung['p99_ms']:.1f}" in text
        assert f"{rung['quality']['spearman']:.3f}" in text
        assert f"{rung['p50_ms'] / 21.5:.2f}" in text
    assert data.simulation is not None
    for switch in data.simulation["switches"]:
        assert switch["reason"] in text
    for _, command in data.commands:
        assert command in text
    for fact in ("commute (scripted)", "AMD EPYC", "onnxruntime 1.31.1", "torch 2.13.0", "331 MB", "134 MB", "2.4e-06"):
        assert fact in text
    assert "3 of 4 results are the same" in text
    assert "not among the results of the lower rung" in text
    assert "9 switches" in text
    assert "10 of 10" in text


def test_hostile_text_stays_text(report_data: Sample) -> None:
    data = report_data()
    clean = {tag for tag, _ in Page(build_report(data)).tags}

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(item) if key not in {"kind", "time_at_rung_s"} else item for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return HOSTILE if isinstance(value, str) else value

    page = Page(
        build_report(
            ReportData(
                profile={**poison(data.profile), "warnings": [HOSTILE]},
                simulation=poison(data.simulation),
                verification={
                    **poison(data.verification),
                    "checks": [
                        {"form": HOSTILE, "rank": 48, "max_abs_diff": 1.0, "tolerance": 1e-4, "passed": False}
                        | {"worst_tensor": HOSTILE, "worst_batch": 0}
                    ],
                },
                top_answer=poison(data.top_answer),
                lowest_answer=poison(data.lowest_answer),
                footprint=data.footprint,
                commands=((HOSTILE, HOSTILE),),
                versions={HOSTILE: HOSTILE},
                quality_note=HOSTILE,
            )
        )
    )
    assert {tag for tag, _ in page.tags} == clean
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.all_text.count(HOSTILE) >= 20


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("simulation", "No trace was replayed."),
        ("verification", "was not verified"),
        ("top_answer", "No query was answered at two rungs."),
        ("lowest_answer", "No query was answered at two rungs."),
        ("footprint", None),
        ("commands", None),
        ("versions", None),
        ("quality_note", None),
    ],
)
def test_a_missing_part(report_data: Sample, missing: str, says: str | None) -> None:
    nothing: dict[str, Any] = {"commands": (), "versions": {}, "quality_note": ""}
    page = Page(build_report(replace(report_data(), **{missing: nothing.get(missing)})))
    if says:
        assert says in page.all_text
    if missing == "footprint":
        assert "Size on disk" not in page.all_text
    if missing == "simulation":
        assert len(page.named("svg")) == 2


def test_the_profile_alone(report_data: Sample) -> None:
    data = report_data()
    for rung in data.profile["rungs"]:
        rung["quality"] = {}
    page = Page(build_report(ReportData(profile=data.profile)))
    assert page.named("svg") == []
    assert "No quality was measured" in page.all_text
    assert "keeping" not in page.texts["h1"][0]


def test_quality_from_the_verification(report_data: Sample) -> None:
    data = report_data()
    for rung in data.profile["rungs"]:
        rung["quality"] = {}
    page = Page(build_report(data))
    assert "keeping a Spearman correlation of 0.83" in page.texts["h1"][0]
    assert len(page.named("svg")) == 4


def test_a_failed_verification(report_data: Sample) -> None:
    data = report_data()
    assert data.verification is not None
    data.verification["passed"] = False
    data.verification["checks"][1].update(passed=False, max_abs_diff=0.25, worst_tensor="pooler_output")
    data.verification["checks"][2].update(passed=False, max_abs_diff=None)
    text = Page(build_report(data)).all_text
    assert "No. See the cells that differ." in text
    assert "2.5e-01" in text
    assert "Tolerance: 1e-04 " in text
    assert "differs in pooler_output" in text
    assert "not a number" in text
    assert "8 of 10" in text


def test_factors_at_the_top_rank_are_not_called_dense(report_data: Sample) -> None:
    data = report_data()
    assert data.verification is not None
    for check in data.verification["checks"]:
        check.update(dense=check["form"] == "static" and check["rank"] == 384, max_relative_diff=1e-6)
    page = Page(build_report(data))
    rows = [row for row in page.texts["tr"] if "agrees" in row]
    assert rows[:2] == ["dense2.8e-06 agrees–", "rank 384–2.8e-06 agrees"]
    assert "Tolerance: 1e-04 of the tensor's largest magnitude" in page.all_text


def test_a_dot_has_the_colour_of_the_rung_that_answered(report_data: Sample) -> None:
    def dots(answered_by: int | None) -> set[str | None]:
        data = report_data()
        assert data.simulation is not None
        for row in data.simulation["timeline"]:
            row.update(rank=48, answered_by_rank=answered_by)
        page = Page(build_report(data))
        return {path["style"] for path in page.named("path") if path.get("stroke-linecap") == "round"}

    assert dots(None) == {"stroke:var(--r0)"}
    assert dots(384) == {"stroke:var(--r4)"}


def test_the_trace_is_named_for_what_it_is(report_data: Sample) -> None:
    page = Page(build_report(replace(report_data(), trace_note="scripted, a day in the field")))
    assert any("(scripted, a day in the field) was replayed" in text for text in page.texts["p"])


def test_a_trace_with_silent_sensors(report_data: Sample) -> None:
    data = report_data()
    assert data.simulation is not None
    for row in data.simulation["timeline"]:
        row.update(battery_pct=None, temperature_c=None, latency_ms=None, on_mains=None)
    data.simulation["switches"] = []
    data.simulation["summary"].update(queries=None, failed_queries=None)
    page = Page(build_report(data))
    assert page.all_text.count("the trace has none") == 4  # two sensors, two versions
    assert "The policy never switched." in page.all_text
    assert "latency of each answer" not in page.all_text
    assert "0 switches" in page.all_text


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_a_short_trace(report_data: Sample, rows: int) -> None:
    data = report_data()
    assert data.simulation is not None
    data.simulation["timeline"] = data.simulation["timeline"][:rows]
    data.simulation["trace"]["duration_s"] = float(max(rows - 1, 0))
    data.simulation["switches"] = []
    page = Page(build_report(data))
    assert ("has no rows" in page.all_text) == (rows == 0)
    assert "nan" not in page.all_text.lower()


def test_many_switches(report_data: Sample) -> None:
    data = report_data()
    assert data.simulation is not None
    data.simulation["switches"] = [
        {"time_s": float(second), "from_rank": 96, "to_rank": 144, "reason": f"reason {second}"}
        for second in range(200)
    ]
    page = Page(build_report(data))
    assert "185 more switches" in page.all_text
    assert "reason 199" in page.all_text
    assert sum(attributes.get("class") == "switch" for attributes in page.named("line")) == 2 * 200


def test_warnings_are_shown(report_data: Sample) -> None:
    data = report_data()
    data.profile["warnings"] = ["unsteady: someone else was at work"]
    data.profile["rungs"][0]["steady"] = False
    text = Page(build_report(data)).all_text
    assert "unsteady: someone else was at work" in text
    assert "(unsteady)" in text


@pytest.mark.parametrize("part", ["profile", "simulation", "verification", "top_answer"])
@pytest.mark.parametrize("damage", ["kind", "version", "empty"])
def test_parts_that_are_not_what_they_should_be(report_data: Sample, part: str, damage: str) -> None:
    data = report_data()
    sound = getattr(data, part)
    broken = {
        "kind": {**sound, "kind": "inspection"},
        "version": {**sound, "schema_version": 2},
        "empty": {"kind": sound["kind"], "schema_version": 1},
    }[damage]
    with pytest.raises(NsnEdgeError, match=str(sound["kind"])):
        build_report(replace(data, **{part: broken}))


def test_a_profile_without_rungs(report_data: Sample) -> None:
    data = report_data()
    with pytest.raises(NsnEdgeError, match="no rungs"):
        build_report(replace(data, profile={**data.profile, "rungs": []}))


def test_it_does_not_depend_on_when_or_where(report_data: Sample) -> None:
    assert build_report(report_data()) == build_report(report_data())


def test_it_is_saved_in_one_step(report_data: Sample, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    save_report(report_data(), path)
    assert path.read_text(encoding="utf-8") == build_report(report_data())
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_the_footprint_of_a_bundle(tiny_bundle: tuple[Path, Any]) -> None:
    path, model = tiny_bundle
    footprint = Footprint.from_bundle(Bundle.open(path))
    assert footprint.bundle_bytes == sum(file.stat().st_size for file in path.iterdir())
    assert footprint.weights_bytes == (path / "weights.bin").stat().st_size
    assert footprint.rungs == 4
    graphs = sum(file.stat().st_size for file in path.glob("rank-*.onnx"))
    dense = 4 * sum(weight.size for weight in model.dense.values())
    factors = sum(
        4 * model.ladder.layer_ranks(rank)[layer.name] * (layer.d_in + layer.d_out)
        for rank in (2, 5, 8)
        for layer in model.ladder.layers
    )
    assert footprint.separate_bytes == graphs + dense + factors
