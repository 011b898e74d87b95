"""Profile a bundle in every configuration that was asked for, keeping what there is after each.

forms x batch sizes x sequence lengths --> one `profile_bundle` after another --> DeviceProfile
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from nsn_edge.bundle import Bundle
from nsn_edge.bundle.engines import bundle_hash
from nsn_edge.errors import EngineError, UsageError
from nsn_edge.progress import Progress, silent
from nsn_edge.runtimes.engines import Engine
from nsn_edge.runtimes.profiling.device import device_key
from nsn_edge.runtimes.profiling.document import DeviceProfile, Failed
from nsn_edge.runtimes.profiling.host import Host, describe_host
from nsn_edge.runtimes.profiling.keeping import Keeper
from nsn_edge.runtimes.profiling.measure import Clock
from nsn_edge.runtimes.profiling.profiler import ProfileSettings, chosen_ranks, made_up_inputs, profile_bundle
from nsn_edge.runtimes.profiling.result import configuration_name
from nsn_edge.runtimes.telemetry import TelemetrySource

# What an engine says of itself only once graphs are loaded.
_VOLATILE = ("loaded", "device_weight_bytes")


def grid(
    base: ProfileSettings, *, forms: Sequence[str], batch_sizes: Sequence[int], sequence_lengths: Sequence[int]
) -> tuple[ProfileSettings, ...]:
    """Every combination, the first of each first; repeated values count once.

    Raises:
        UsageError: a list is empty, a form is unknown, or a size is below 1.
    """
    if not (forms and batch_sizes and sequence_lengths):
        raise UsageError("nothing to measure", "name at least one form, batch size and sequence length")
    return tuple(
        replace(base, form=form, batch_size=batch, sequence_length=length)
        for form, batch, length in itertools.product(
            dict.fromkeys(forms), dict.fromkeys(batch_sizes), dict.fromkeys(sequence_lengths)
        )
    )


def profile_device(
    bundle: Bundle,
    engine: Engine,
    cells: Sequence[ProfileSettings],
    *,
    ranks: Sequence[int] | None = None,
    keeper: Keeper | None = None,
    source: TelemetrySource | None = None,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    host: Callable[[], Host] = describe_host,
    progress: Progress = silent,
) -> DeviceProfile:
    """Measure every rung of a bundle in every configuration.

    Args:
        bundle: checked.
        engine: loads and runs the graphs.
        cells: the configurations, of `grid`.
        ranks: rungs to measure; all by default.
        keeper: keeps what there is after each configuration, and has what an earlier run kept.
        source: sensors; without one neither energy nor conditions are in the profile.
        clock: seconds.
        sleep: waits while idle power is measured.
        host: describes the machine.
        progress: hears of loading and measuring.

    Raises:
        UsageError: a configuration cannot be, which is said before anything is measured; or an earlier run that the
            keeper has was of something else.
        RankError: a rank has no rung.
        EngineError: the engine could not load or run a graph, and there is but one configuration, or none could be
            measured. Otherwise the configuration is among the failed ones.
        NsnEdgeError: the profile cannot be written.
    """
    chosen = chosen_ranks(bundle, ranks)
    for cell in cells:
        made_up_inputs(bundle, cell)
        for rank in chosen:
            bundle.graph(rank, cell.form)
    machine, description = host(), engine.describe()
    document = DeviceProfile(
        bundle_path=str(bundle.path),
        model=bundle.manifest.model,
        host=machine.to_json(),
        configurations=(),
        bundle_hash=bundle_hash(bundle.manifest),
        device=device_key(machine, description),
        plan=_plan(cells, chosen, description),
        complete=False,
    )
    document = (keeper.resume(document) if keeper else None) or document
    known = [dict(profile.configuration) for profile in document.configurations]
    known += [dict(item.configuration) for item in document.failed]
    for number, cell in enumerate(cells, start=1):
        if _configuration(cell) in known:
            continue
        told = _prefixed(progress, cell, number, len(cells)) if len(cells) > 1 else progress
        try:
            profile = profile_bundle(
                bundle,
                engine,
                cell,
                ranks=chosen,
                source=source,
                clock=clock,
                sleep=sleep,
                host=host,
                progress=told,
            )
        except EngineError as error:
            if len(cells) == 1:
                raise
            document = replace(document, failed=(*document.failed, Failed(_configuration(cell), error.message)))
        else:
            document = replace(document, configurations=(*document.configurations, profile))
        if keeper is not None:
            keeper.keep(document)
    if not document.configurations:
        raise EngineError(f"no configuration could be measured: {document.failed[0].error}", "nsn-edge doctor may help")
    document = replace(document, complete=True)
    if keeper is not None:
        keeper.finish(document)
    return document


def _configuration(cell: ProfileSettings) -> dict[str, Any]:
    """As `Profile.configuration` has it."""
    return {
        "form": cell.form,
        "batch_size": cell.sizes["batch_size"],
        "sequence_length": cell.sizes["sequence_length"],
        "dimensions": dict(cell.dimensions),
    }


def _plan(cells: Sequence[ProfileSettings], ranks: Sequence[int], engine: Mapping[str, Any]) -> dict[str, Any]:
    first = cells[0]
    plan = {
        "ranks": list(ranks),
        "configurations": [_configuration(cell) for cell in cells],
        "measure": asdict(first.measure),
        "energy": asdict(first.energy),
        "settle_s": first.settle_s,
        "engine": {key: value for key, value in engine.items() if key not in _VOLATILE},
    }
    # As it will be read back: a tuple becomes a list.
    found: dict[str, Any] = json.loads(json.dumps(plan, default=str))
    return found


def _prefixed(progress: Progress, cell: ProfileSettings, number: int, of: int) -> Progress:
    name = f"{number}/{of} {configuration_name(_configuration(cell))}"
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)
