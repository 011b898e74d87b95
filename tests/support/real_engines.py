"""Real engines in tests: TensorRT-RTX's builder needs no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nsn_edge.bundle import Bundle
from nsn_edge.export.tensorrt.build import BuiltEngine, build, plan_build
from nsn_edge.export.tensorrt.library import Library
from nsn_edge.export.tensorrt.plan import BuildConfig
from nsn_edge.export.tensorrt.shapes import SizeRange

SMALL = {"sequence_length": SizeRange(1, 16, 32)}
SMALL_CACHED = {**SMALL, "past_sequence_length": SizeRange(0, 16, 31)}


def rtx() -> Library:
    """TensorRT-RTX, or a skipped test."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install '.[rtx]'")
    return Library.load("tensorrt_rtx")


def built(
    bundle: Bundle, root: Path, *, device: str | None = "sm86", sizes: Mapping[str, SizeRange] = SMALL, **config: Any
) -> list[BuiltEngine]:
    """Build real engines of a bundle, for SM86 unless told otherwise."""
    force = config.pop("force", False)
    plan = plan_build(bundle, rtx(), BuildConfig(sizes=sizes, **config), device=device, root=root, force=force)
    return build(plan)
