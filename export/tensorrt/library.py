"""NVIDIA's library, JetPack's `tensorrt` or `tensorrt_rtx`, and what the two and their versions differ in.

| | `tensorrt` | `tensorrt_rtx` |
|---|---|---|
| builds for | the GPU that is here, which it times kernels on | any compute capability; kernels come at first use |
| lower precision | a flag of the builder (until 10), typed graphs (since 11) | typed graphs |
| timing cache | yes | none: it times nothing, and asking for one would need a GPU |
| int64 inputs | since 10; int32 before | yes |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nsn_edge.bundle.engines import EngineDevice
from nsn_edge.errors import EngineError, UsageError
from nsn_edge.export.tensorrt.gpu import current_gpu
from nsn_edge.nvidia import TITLES, Messages, import_library, messages_of

ANY_GPU = EngineDevice.kind("8.0+")
"""What TensorRT-RTX builds for unless told: its documentation names 8.0, 8.6, 8.9, 12.0 and later ones."""


@dataclass(frozen=True)
class Library:
    """An imported library. Use `load`."""

    name: str
    """Of the module: one of `nsn_edge.bundle.engines.LIBRARIES`."""
    module: Any
    """Itself."""
    messages: Messages
    """What it says."""

    @classmethod
    def load(cls, name: str) -> Library:
        """Import it.

        Raises:
            MissingDependencyError: it is not installed.
            EngineError: it is installed and cannot be imported.
        """
        module = import_library(
            name, "building engines", elsewhere="build ahead of time without a GPU, with --backend tensorrt-rtx"
        )
        return cls(name, module, messages_of(module))

    @property
    def logger(self) -> Any:
        """For what takes an `ILogger`."""
        return self.messages.logger

    @property
    def title(self) -> str:
        """Its name for people."""
        return TITLES[self.name]

    @property
    def version(self) -> str:
        """In full."""
        return str(self.module.__version__)

    @property
    def is_rtx(self) -> bool:
        """Whether it builds ahead of time."""
        return self.name == "tensorrt_rtx"

    @property
    def has_progress(self) -> bool:
        """Whether a build can be watched, and stopped."""
        return hasattr(self.module, "IProgressMonitor")

    @property
    def has_timing_cache(self) -> bool:
        """Whether measurements of kernels can be kept for the next build."""
        return not self.is_rtx

    def precision_flag(self, precision: str) -> Any | None:
        """The builder's flag that allows a precision; None where graphs must say it themselves."""
        return getattr(self.module.BuilderFlag, precision.upper(), None)

    def check_precision(self, precision: str) -> None:
        """Raises:
        UsageError: this version does not know the precision.
        """
        if precision == "bf16" and not hasattr(self.module.DataType, "BF16"):
            raise UsageError(f"{self.title} {self.version} has no bf16", "choose --precision fp16")

    def device(self, asked: str | None) -> EngineDevice:
        """What to build for: the GPU that is here, or what was asked for.

        Args:
            asked: `sm86`, or `sm80+` for this and later ones; None for this machine's GPU, and for TensorRT-RTX on a
                machine without one `sm80+`.

        Raises:
            UsageError: the library cannot build for it.
            EngineError: `tensorrt` without a GPU.
        """
        gpu = current_gpu()
        if not self.is_rtx:
            if gpu is None:
                raise EngineError(
                    f"{self.title} builds on the GPU that it builds for, and no NVIDIA GPU answers here",
                    "build on the device, or ahead of time with --backend tensorrt-rtx",
                )
            if asked not in (None, gpu.sm):
                raise UsageError(
                    f"{self.title} builds for the GPU that is here, {gpu.name} ({gpu.sm}), not for {asked}"
                )
            return gpu
        known = self._known_capabilities()
        if asked is None:
            return ANY_GPU if gpu is None else EngineDevice.kind(gpu.compute_capability)
        if asked == ANY_GPU.sm:
            return ANY_GPU
        if asked not in known and (gpu is None or asked != gpu.sm):
            raise UsageError(
                f"{self.title} {self.version} builds for {ANY_GPU.sm}, {', '.join(known)}"
                + (f" and the {gpu.sm} that is here" if gpu else "")
                + f", not for {asked}"
            )
        return EngineDevice.kind(f"{asked[2:-1]}.{asked[-1]}")

    def set_target(self, config: Any, device: EngineDevice) -> None:
        """Tell a builder's configuration what to build for."""
        if not self.is_rtx or device == ANY_GPU:
            return
        kinds = self.module.ComputeCapability
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(kinds, device.sm.upper(), kinds.CURRENT), 0)

    def _known_capabilities(self) -> list[str]:
        names = (name for name in vars(self.module.ComputeCapability) if name.startswith("SM"))
        return [name.lower() for name in sorted(names, key=lambda name: int(name[2:]))]
