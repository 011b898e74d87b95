"""Does the identity-block gauge pay? An MLP block of MiniLM's shape, every permutation already folded away.

    python benchmarks/gauge.py --json benchmarks/results/gauge.json

`W_r = B_r A_r` is unchanged by `B_r G, G^-1 A_r`. A `G` that turns r rows of `B` (or r columns of `A`) into the
identity leaves `r (d_in + d_out - r)` multiplications. In an MLP the order of the hidden units is free, so the
permutation that this needs costs nothing there: what remains is a concatenation after the first layer and a split
before the second. This is the best case for the gauge; elsewhere the permutation comes on top.

    factored   x A1 B1 -> gelu -> A2 B2
    gauge      h = x A1', y = [h | h C] -> gelu -> (y[:r] + y[r:] D) B2'

It is timed against the factored form at the same rank (fewer multiplications) and at the same FLOPs (a higher rank), in
onnxruntime on one thread, all graphs in turn.

JSON: `rows`, one object per number of tokens and graph, with `tokens, graph, rank, macs_fraction, p50_ms,
relative_to_dense`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from common import Target, publish
from onnx import helper, numpy_helper
from rich.table import Table

from nsn_edge.runtimes.profiling import LatencyStats, MeasureSettings, measure

D, HIDDEN = 384, 1536
TOKENS = (8, 32, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON document here too")
    parser.add_argument("--repetitions", type=int, default=300)
    options = parser.parse_args()
    rank = 152  # half of the dense multiplications, factored
    same_flops = 168  # r (d_in + d_out - r) is half of them there
    graphs: dict[tuple[str, int], bytes] = {
        ("dense", 0): dense(),
        ("factored", rank): factored(rank),
        ("gauge, same rank", rank): gauge(rank),
        ("gauge, same FLOPs", same_flops): gauge(same_flops),
    }
    rows = []
    for tokens in TOKENS:
        x = np.random.default_rng(0).normal(size=(1, tokens, D)).astype(np.float32)
        calls: dict[tuple[str, int], Callable[[], object]] = {
            key: partial(session(model).run, None, {"x": x}) for key, model in graphs.items()
        }
        settings = MeasureSettings(warmup=20, min_repetitions=options.repetitions, min_time_s=0.5)
        samples = measure(calls, settings)
        base = LatencyStats.from_samples(samples["dense", 0]).p50_ms
        for (name, used), taken in samples.items():
            p50_ms = LatencyStats.from_samples(taken).p50_ms
            rows.append(
                {
                    "tokens": tokens,
                    "graph": name,
                    "rank": used or None,
                    "macs_fraction": macs_fraction(name, used),
                    "p50_ms": p50_ms,
                    "relative_to_dense": p50_ms / base,
                }
            )
    by = {(row["tokens"], row["graph"]): row["relative_to_dense"] for row in rows}
    targets = [
        Target(
            f"gauge at the same rank / factored, {tokens} tokens",
            by[tokens, "gauge, same rank"] / by[tokens, "factored"],
            1.0,
        )
        for tokens in TOKENS
    ]
    publish("benchmark-gauge", {"d_model": D, "d_hidden": HIDDEN, "rows": rows}, targets, [table(rows)], options.json)


def macs_fraction(name: str, rank: int) -> float:
    if name == "dense":
        return 1.0
    cost = rank * (D + HIDDEN - (rank if name.startswith("gauge") else 0))
    return cost / (D * HIDDEN)


def session(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Block:
    """Collects nodes and random weights; the values do not matter to the clock."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._rng = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        array = (self._rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"v{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def product(self, x: str, *shape: int) -> str:
        name: str = self.op("MatMul", x, self.weight(*shape))
        return name

    def gelu(self, x: str) -> str:
        """With the bias before it, as onnxruntime fuses it."""
        y = self.op("Add", x, self.weight(HIDDEN))
        erf = self.op("Erf", self.op("Div", y, self.constant(np.array(2**0.5, np.float32))))
        grown = self.op("Mul", y, self.op("Add", erf, self.constant(np.array(1.0, np.float32))))
        name: str = self.op("Mul", grown, self.constant(np.array(0.5, np.float32)))
        return name

    def finish(self, y: str) -> bytes:
        self.nodes.append(helper.make_node("Identity", [self.op("Add", y, self.weight(D))], ["y"]))
        shape = [1, "tokens", D]
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))
        graph = helper.make_graph(
            self.nodes,
            "block",
            [helper.make_tensor_value_info("x", kind, shape)],
            [helper.make_tensor_value_info("y", kind, shape)],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        data: bytes = model.SerializeToString()
        return data


def dense() -> bytes:
    block = Block()
    return block.finish(block.product(block.gelu(block.product("x", D, HIDDEN)), HIDDEN, D))


def factored(rank: int) -> bytes:
    block = Block()
    y = block.gelu(block.product(block.product("x", D, rank), rank, HIDDEN))
    return block.finish(block.product(block.product(y, HIDDEN, rank), rank, D))


def gauge(rank: int) -> bytes:
    block = Block()
    h = block.product("x", D, rank)
    y = block.gelu(block.op("Concat", h, block.product(h, rank, HIDDEN - rank), axis=-1))
    sizes = block.constant(np.array([rank, HIDDEN - rank], np.int64))
    first, rest = block.op("Split", y, sizes, outputs=2, axis=-1)
    h = block.op("Add", first, block.product(rest, HIDDEN - rank, rank))
    return block.finish(block.product(h, rank, D))


def table(rows: list[dict[str, Any]]) -> Table:
    result = Table(title="MLP block 384 -> 1536 -> 384, 1 thread, latency / dense", title_justify="left")
    for heading in ("graph", "rank", "MACs", *(f"{tokens} tokens" for tokens in TOKENS)):
        result.add_column(heading, justify="left" if heading == "graph" else "right")
    for name in dict.fromkeys(row["graph"] for row in rows):
        mine = [row for row in rows if row["graph"] == name]
        result.add_row(
            name,
            str(mine[0]["rank"] or "-"),
            f"{mine[0]['macs_fraction']:.1%}",
            *(f"{row['relative_to_dense']:.3f}" for row in mine),
        )
    return result


if __name__ == "__main__":
    onnxruntime.set_default_logger_severity(3)
    main()
