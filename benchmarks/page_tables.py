"""The tables of docs/ as `readme_tables.py` writes them: one function per table, from result files to Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Data = Mapping[str, Any]
CANDIDATES = ("static", "gated", "bound", "sliced", "masked", "static shared", "gated shared", "bound shared")


def forms_latency(data: Data) -> str:
    """Each form against a dedicated graph: the range over the rungs below the dense one, and the dense rung."""
    lines = [
        "| model, workload | threads | rungs | " + " | ".join(CANDIDATES) + " |",
        "|---|--:|---|" + "--:|" * len(CANDIDATES),
    ]
    groups: dict[tuple[Any, ...], list[Data]] = {}
    for row in data["latency"]:
        groups.setdefault((row["model"], row["workload"], row["threads"], row["dense"]), []).append(row)
    for (model, workload, threads, dense), rows in sorted(groups.items(), key=lambda item: item[0][2]):
        cells = [_range([row["ratios"][name] for row in rows]) for name in CANDIDATES]
        rungs = "dense" if dense else "below"
        lines.append(f"| {model}, {workload} | {threads} | {rungs} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def forms_memory(data: Data) -> str:
    """What one process holds that serves every rung."""
    lines = ["| model | form | one copy, MB | weights, MB | the rest, MB | copies |", "|---|---|--:|--:|--:|--:|"]
    for row in data["memory"]:
        name = "dedicated, one file per rank" if row["form"] == "dedicated" else row["form"]
        numbers = (row["copy_mb"], row["weights_mapped_mb"], row["anonymous_mb"])
        lines.append(
            f"| {row['model']} | {name}{' shared' if row['shared'] else ''} | "
            + " | ".join(f"{number:.0f}" for number in numbers)
            + f" | {row['copies']:.2f} |"
        )
    return "\n".join(lines)


def forms_ordinary(data: Data) -> str:
    """Disk and export time against one export per rung."""
    lines = [
        "| model | | five rungs, one bundle | all forms, one bundle | one export per rung | rungs / ordinary |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in data["ordinary"]:
        disk = [row[key] / 1e6 for key in ("rungs_bytes", "all_forms_bytes", "ordinary_bytes")]
        export = [row["export_s"][key] for key in ("static", "bundle", "ordinary")]
        for what, numbers, places, ratio in (
            ("disk, MB", disk, 0, row["rungs_over_ordinary"]),
            ("export, s", export, 1, row["export_over_ordinary"]),
        ):
            cells = " | ".join(f"{number:.{places}f}" for number in numbers)
            lines.append(f"| {row['model']} | {what} | {cells} | {ratio:.2f} |")
    return "\n".join(lines)


def decode_speed(data: Data) -> str:
    """Tokens per second against the dense rung."""
    rows = [row for row in data["results"] if not row["dense"]]
    columns = list(dict.fromkeys((row["test"], row["threads"]) for row in rows))
    found = {(row["rank"], (row["test"], row["threads"])): row["relative_to_dense"] for row in rows}
    headings = (f"{test}, {threads} thread{'s' if threads > 1 else ''}" for test, threads in columns)
    lines = ["| linear FLOPs | " + " | ".join(headings) + " |", "|---|" + "--:|" * len(columns)]
    for rank, fraction in sorted({(row["rank"], row["flops_fraction"]) for row in rows}, reverse=True):
        cells = (f"{found[rank, column]:.2f}" for column in columns)
        lines.append(f"| {fraction:.0%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def precision_pairs(data: Data) -> str:
    """Every rung in every precision."""
    lines = [
        "| model, workload | precision | rung | linear FLOPs | ms | of its dense | of dense fp32 | quality | cost |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in data["rows"]:
        rung = "dense" if row["dense"] else f"rank {row['rank']}"
        if row["rank"] is None:
            rung = "dense, onnxruntime's own"
        lines.append(
            f"| {row['model']}, {row['workload']} | {row['precision']} | {rung} "
            f"| {row['flops_fraction']:.0%} | {row['ms']:.2f} | {row['relative_to_dense']:.2f} "
            f"| {row['relative_to_dense_fp32']:.2f} | {row['quality']:.3f} | {row['quality_cost']:.2f} |"
        )
    return "\n".join(lines)


def built_engines(data: Data) -> str:
    """What building takes, summed over the engines that serve all rungs."""
    lines = ["| model | precision | engines | how many | MB | seconds |", "|---|---|---|--:|--:|--:|"]
    for row in data["totals"]:
        lines.append(
            f"| {row['model']} | {row['precision']} | {row['way']} | {row['engines']} "
            f"| {row['size_bytes'] / 1e6:.0f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def recipes(data: Data, arena: str) -> str:
    """Training recipes down, ranks across: means over the seeds and their standard deviation."""
    mine = [row for row in data["rows"] if row["arena"] == arena]
    shares = sorted({row["wanted_fraction"] for row in mine if not row["between"]}, reverse=True)
    dense = [entry["score"] for entry in data["dense"] if entry["arena"] == arena]
    headings = ["top rung", "full rank", *(f"{share:.0%}" for share in shares[1:]), "rungs", "between", "seeds"]
    lines = [
        f"{mine[0]['unit']}; dense {_mean(dense)}:",
        "",
        "| recipe | " + " | ".join(headings) + " |",
        "|---|" + "--:|" * len(headings),
    ]
    for recipe in dict.fromkeys(row["recipe"] for row in mine):
        its = [row for row in mine if row["recipe"] == recipe]
        columns = [[row["top_score"] for row in its if row["top_score"] is not None]]
        columns += [[row["score"] for row in its if row["wanted_fraction"] == share] for share in shares]
        for between in (False, True):
            by_seed: dict[int, list[float]] = {}
            for row in its:
                if row["between"] == between:
                    by_seed.setdefault(row["seed"], []).append(row["score"])
            columns.append([statistics.mean(scores) for scores in by_seed.values()])
        name = f"**{recipe}**" if recipe in ("paper", "default") else recipe
        seeds = len({row["seed"] for row in its})
        lines.append(f"| {name} | " + " | ".join(map(_mean, columns)) + f" | {seeds} |")
    return "\n".join(lines)


def lost_by_training(data: Data) -> str:
    """Points lost against dense: the paper's recipe and the default, means over the seeds."""
    shares = (0.5, 0.25, 0.15)
    titles = {"CLINC150": "CLINC150 accuracy", "STS-B": "STS-B Spearman x 100, no labels"}
    lines = [
        "Points lost against the dense model (`python benchmarks/training.py`, "
        "[results](benchmarks/results/training.json)):",
        "",
        "| | recipe | " + " | ".join(f"{share:.0%}" for share in shares) + " |",
        "|---|---|" + "--:|" * len(shares),
    ]
    for arena, title in titles.items():
        for recipe in ("untrained, whitened + sensitivity", "paper", "default"):
            its = [row for row in data["rows"] if (row["arena"], row["recipe"]) == (arena, recipe)]
            if not its:
                continue
            seeds = {row["seed"] for row in its}
            dense = statistics.mean(e["score"] for e in data["dense"] if e["arena"] == arena and e["seed"] in seeds)
            cells = []
            for share in shares:
                mean = statistics.mean(row["score"] for row in its if row["wanted_fraction"] == share)
                cells.append(f"{dense - mean:.1f}")
            name = {"paper": "the paper's", "default": "`nsn-edge train`"}.get(recipe, "no training")
            lines.append(f"| {title} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def difficulty_rules(data: Data | None) -> str:
    """What cascades lose and save, the rung alone beside them; a line where no run is committed."""
    if data is None:
        return "No run of it is committed yet."
    chosen = data["rules"][data["chosen"]]
    first = {row["rank"]: row for row in data["rungs"]}
    lines = [
        "| stated loss, points | labels | first rung | bound, points | asked again | linear FLOPs | lost, points |",
        "|--:|---|--:|--:|--:|--:|--:|",
    ]
    by_goal = {(row["labelled"], row["max_loss_points"]): row for row in reversed(data["rules"])}
    for (labelled, stated), row in sorted(by_goal.items(), key=lambda item: (not item[0][0], item[0][1])):
        test = row["on_test"]
        share = first[row["ranks"][0]]["flops_fraction"]
        lines.append(
            f"| {stated:g} | {'yes' if labelled else 'no'} | {share:.0%} | {row['loss_bound_points']:.2f} "
            f"| {test['passed_on']:.1%} | {test['flops_fraction']:.1%} | {test['loss_points']:.2f} |"
        )
    alone = first[chosen["ranks"][0]]
    lines += [
        "",
        f"The {alone['flops_fraction']:.0%} rung alone loses {alone['loss_points']:.2f} points of the dense model's "
        f"{100 * chosen['on_test']['right_at_top']:.2f}. A text takes {data['latency']['relative_to_dense']:.2f} of "
        f"the dense time on average, one at a time, calibrated for {chosen['max_loss_points']:g} points with labels.",
    ]
    return "\n".join(lines)


def missed(data: Data) -> str:
    """The targets that a run missed."""
    rows = [target for target in data["targets"] if not target["met"]]
    if not rows:
        return "Every target was met."
    lines = ["| target missed | measured | must be |", "|---|--:|--:|"]
    lines += [f"| {row['name']} | {row['value']:.3g} | {row['relation']} {row['limit']:g} |" for row in rows]
    return "\n".join(lines)


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low}-{high}"
