"""What a form keeps in memory, told by the process that keeps it: `resident_memory` starts one afresh for each answer.

Every rung of every bundle named is opened and run (of `bound` every direction of the factors too), and every id of the
vocabulary is embedded once, so that all weights a user may touch have been touched. Then the kernel is asked
(`/proc/self/smaps`): pages of the weights file by their proportional share, since one page mapped at several addresses
is in memory once, and anonymous pages (repacked weights, graphs, activations), less those of the process when
onnxruntime has run a graph of one node.
"""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from nsn_edge.bundle import Bundle
from nsn_edge.runtimes.engines import OnnxRuntimeEngine
from nsn_edge.runtimes.profiling.inputs import synthesise_inputs
from nsn_edge.runtimes.session import EdgeSession

TOKENS = 32
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ (?:\S+ +){3}\S+ *(.*)$")


def resident_memory(bundles: Sequence[Path], form: str, share_weights: bool, vocabulary: int) -> dict[str, float]:
    """Megabytes: `weights_mapped_mb`, `anonymous_mb` and their sum `resident_mb`, of all rungs of these bundles."""
    command = [sys.executable, __file__, form, str(int(share_weights)), str(vocabulary), *map(str, bundles)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(answer.splitlines()[-1])
    return found


def main(form: str, share_weights: bool, vocabulary: int, paths: Sequence[str]) -> None:
    start_onnxruntime()
    gc.collect()
    before_mb = anonymous_and_mapped_mb()[0]
    with ExitStack() as opened:
        for path in paths:
            bundle = Bundle.open(path, check_hashes=False)
            engine = OnnxRuntimeEngine(share_weights=share_weights)
            session = opened.enter_context(EdgeSession.open(bundle, form=form, engine=engine))
            ladder = bundle.manifest.ladder
            # `bound` keeps every rank in one mapping; the highest below a dense rung has all rows but one.
            for rank in [*ladder.ranks, *([ladder.max_rank - 1] if form == "bound" else [])]:
                run_ids(session, rank, np.arange(TOKENS) % vocabulary)
            for start in range(0, vocabulary, TOKENS):
                run_ids(session, bundle.manifest.ladder.ranks[0], np.arange(start, start + TOKENS) % vocabulary)
        gc.collect()
        anonymous_mb, mapped_mb = anonymous_and_mapped_mb()
    anonymous_mb -= before_mb
    print(
        json.dumps(
            {
                "weights_mapped_mb": mapped_mb,
                "anonymous_mb": anonymous_mb,
                "resident_mb": mapped_mb + anonymous_mb,
            }
        )
    )


def start_onnxruntime() -> None:
    """Load and run one node, so that the engine's own memory (2 MB) is not counted as the form's."""
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "one", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.zeros(1, dtype=np.float32)})


def run_ids(session: EdgeSession, rank: int, ids: np.ndarray) -> None:
    sizes = {"batch_size": 1, "sequence_length": len(ids), "past_sequence_length": 0}
    inputs = synthesise_inputs(session.bundle.manifest.inputs, sizes)
    session.run({**inputs, "input_ids": ids[None].astype(np.int64)}, rank=rank)


def anonymous_and_mapped_mb() -> tuple[float, float]:
    """Of this process: anonymous pages, and the proportional share of mapped weights files."""
    anonymous_kb = mapped_kb = 0
    name = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        header = _MAPPING.match(line)
        if header:
            name = header[1]
        elif line.startswith("Anonymous:"):
            anonymous_kb += int(line.split()[1])
        elif line.startswith("Pss:") and name.endswith("/weights.bin"):
            mapped_kb += int(line.split()[1])
    return anonymous_kb * 1024 / 1e6, mapped_kb * 1024 / 1e6


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "1", int(sys.argv[3]), sys.argv[4:])
