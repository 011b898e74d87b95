"""A GPU check in one command, for a machine with an NVIDIA GPU: under ten minutes, with whatever is installed there.

    python benchmarks/gpu.py -o DIR                  everything that can run here
    python benchmarks/gpu.py -o DIR --prepare        only write the bundles, on a machine that can export
    python benchmarks/gpu.py -o DIR --bundles DIR2   measure bundles that were written elsewhere

    machine                       GPU, driver, libraries
    bundles                       layers of 4096, a decoder, MiniLM: exported here, where that is possible
    torch-layers, torch-decoder   the reference: prefix views of the factors in torch, eager and as CUDA graphs
    onnxruntime-cuda, onnxruntime-tensorrt, tensorrt, tensorrt-rtx     the engines, on the bundles

Each section is a process of its own with a time limit: one that crashes or hangs loses nothing but itself, and
`DIR/gpu.json` is written after each. A section that cannot run says why. Rungs take turns within a section, so ratios
hold where times do not.

Measured: parity at every rung; latency at batch 1 and 32, of prefill and of decoding; what a switch adds to the next
inference; the GPU's memory for an added rung; energy per call by NVML. `of_ideal` is latency / (dense latency x FLOPs
fraction): 1 where saved work is saved time. With `--device cpu` the same code runs on the processor, which says nothing
about GPUs and shows that the code runs.

JSON: `sections`, by name, each with `status` (`ok`, `not run`, `failed`), `why`, `seconds`, and `rows` (latency),
`parity`, `switches`, `memory`, `notes`; `targets` as in every benchmark.

Exit codes: 0 something was measured and nothing failed (a missed target is no failure); 1 a section failed;
2 wrong options; 3 nothing could be measured here.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from gpu_check.results import NOTHING_MEASURED, document, exit_code, publish_check
from gpu_check.runner import MEASURING, SECTIONS, Plan, run_child, run_sections

from nsn_edge.errors import NsnEdgeError

TIME_LIMIT_S = 540.0
PREPARING_S = 3600.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="gpu.json, gpu.txt, bundles/")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the code, not to measure"
    )
    parser.add_argument("--bundles", type=Path, metavar="DIR", help="written by --prepare elsewhere")
    parser.add_argument("--prepare", action="store_true", help="write DIR/bundles and stop")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), metavar="NAME", help="only these")
    parser.add_argument(
        "--time-limit", type=float, metavar="S", help=f"of everything; {TIME_LIMIT_S:.0f}, to prepare {PREPARING_S:.0f}"
    )
    parser.add_argument("--quick", action="store_true", help="tiny models and few calls: to try it")
    parser.add_argument("--child", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=120.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.time_limit is None:
        options.time_limit = PREPARING_S if options.prepare else TIME_LIMIT_S
    if options.time_limit <= 0:
        parser.error("--time-limit is a number of seconds above 0")
    if options.bundles is not None and not options.bundles.is_dir():
        parser.error(f"there is no folder {options.bundles}")
    plan = Plan(
        output=options.output.resolve(),
        bundles=(options.bundles or options.output / "bundles").resolve(),
        device=options.device,
        quick=options.quick,
        export=options.bundles is None,
        prepare=options.prepare,
    )
    if options.child:
        return run_child(options.child, plan, options.limit)
    try:
        plan.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{options.output} cannot be made: {error.strerror}")
    wanted = ["machine", "bundles"] if options.prepare else (options.sections or list(SECTIONS))
    done = run_sections(plan, wanted, options.time_limit)
    publish_check(document(plan, done), plan.output)
    code = exit_code(done, MEASURING if not options.prepare else {"bundles"})
    if code == NOTHING_MEASURED:
        print("nothing could be measured here; each section above says why", file=sys.stderr)
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (NsnEdgeError, json.JSONDecodeError) as error:
        sys.exit(f"error: {error}")
