"""Which graphs exist in which precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nsn_edge.bundle.manifest import GRAPH_FORMS
from nsn_edge.bundle.quantisation import PRECISIONS, Quantisation
from nsn_edge.errors import UsageError
from nsn_edge.export.graph import Graph
from nsn_edge.export.precision.int4 import BLOCK_SIZE
from nsn_edge.export.precision.outside import products_of, tables_of

FORMS: Mapping[str, tuple[str, ...]] = {
    "fp32": GRAPH_FORMS,
    "fp16": GRAPH_FORMS,
    "int8": ("static",),
    "int4": ("static",),
}
"""The forms that can be written, by precision."""


def chosen_forms(precision: str | None, forms: tuple[str, ...] | None) -> tuple[str, ...]:
    """The forms to write: those that were asked for, or all that the precision has.

    Args:
        precision: None for the checkpoint's own, which is a float.
        forms: None for all.

    Raises:
        UsageError: an unknown precision or form, or a pair that does not exist.
    """
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}", f"the precisions are {', '.join(PRECISIONS)}")
    exist = FORMS[precision or "fp32"]
    if forms is None:
        return exist
    unknown = sorted(set(forms) - set(GRAPH_FORMS))
    if unknown or not forms:
        raise UsageError(
            f"unknown form {unknown[0]!r}" if unknown else "no form asked for",
            f"the forms are {', '.join(GRAPH_FORMS)}",
        )
    if strays := [form for form in forms if form not in exist]:
        others = ", ".join(name for name in PRECISIONS if strays[0] in FORMS[name])
        raise UsageError(
            f"there is no {strays[0]} form in {precision}",
            f"{precision} has {', '.join(exist)}; {strays[0]} exists in {others}",
        )
    return forms


def quantisation_of(
    graph: Graph, precision: str, keep_precise: Sequence[str] = (), *, keep_from: int = 1, originals: bool = True
) -> Quantisation:
    """How a traced graph is quantised.

    Args:
        graph: traced, in float32.
        precision: `int8` or `int4`.
        keep_precise: sensitive nested layers, see `Quantisation.kept`.
        keep_from: see `Quantisation.kept_from`.
        originals: see `Quantisation.originals`.

    Raises:
        UsageError: the graph is not in float32, or has no such layer.
    """
    if graph.precision != "fp32":
        raise UsageError(
            f"{precision} is made of float32 weights, and the graph was traced in {graph.precision}",
            "trace model.float()",
        )
    names = [layer.name for layer in graph.ladder.layers]
    if strays := sorted(set(keep_precise) - set(names)):
        raise UsageError(f"no nested layer is called {strays[0]!r}", f"the first is {names[0]}; see inspect --layers")
    return Quantisation(
        precision,
        kept=tuple(name for name in names if name in keep_precise),
        tables=tables_of(graph),
        products=products_of(graph),
        originals=originals,
        block_size=BLOCK_SIZE if precision == "int4" else None,
        kept_from=keep_from,
    )
