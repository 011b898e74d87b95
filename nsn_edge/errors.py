"""Every error this project raises on purpose.

    NsnEdgeError                  exit 1   what was asked was sound, and it failed
    ├── UsageError                exit 2   what was asked cannot be
    │   ├── RankError                      a rank outside 1..R, or no rung there
    │   ├── UnsupportedModelError          no linear layers, or a layer type that cannot be cut
    │   ├── PolicyError                    a policy file that does not make sense
    │   └── TraceError                     a telemetry trace that cannot be replayed
    ├── MissingDependencyError    exit 1   an optional package is absent; carries the pip line
    ├── CheckpointError           exit 1   a checkpoint that is damaged, missing or too new
    ├── TrainingError             exit 1   training could not go on; the last checkpoint stands
    ├── BundleError               exit 1   a bundle that is damaged, missing or too new
    ├── ExportError               exit 1   tracing or lowering failed; nothing was written
    ├── VerificationError         exit 1   an exported graph disagrees with torch
    ├── ServingError              exit 1   a request was refused or given up, and never ran
    │   ├── QueueFullError                 as many requests wait as may
    │   └── DeadlineError                  its deadline passed while it waited
    └── EngineError               exit 1   an inference engine could not load or run a graph
        ├── InputError                     inputs that do not fit the graph
        ├── NoRungError                    no rung could answer
        ├── ClosedError                    asked of a session or a server that was closed
        ├── ProviderError                  onnxruntime would run elsewhere than was asked
        └── StaleEngineError               an engine file of another bundle, device or version, or a damaged one

Each message names the thing, says what exists, and each hint says how to mend it. Both fit one line.
"""

from __future__ import annotations


class NsnEdgeError(Exception):
    """The root. `message` says what is wrong; `hint` says how to mend it (may be empty)."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = " ".join(message.split())
        self.hint = " ".join(hint.split())
        super().__init__(f"{self.message} ({self.hint})" if self.hint else self.message)


class UsageError(NsnEdgeError):
    """What was asked cannot be, whatever the state of the machine."""

    exit_code = 2


class RankError(UsageError):
    """A rank outside `1..R`, or a rank at which the bundle holds no rung."""


class UnsupportedModelError(UsageError):
    """A model without linear layers, or with a layer type that cannot be cut."""


class PolicyError(UsageError):
    """A policy with an unknown key, a wrong type or thresholds that cross."""


class TraceError(UsageError):
    """A telemetry trace with missing columns, bad numbers or time running backwards."""


class MissingDependencyError(NsnEdgeError):
    """An optional package is not installed. The hint carries the pip line."""

    def __init__(self, package: str, extra: str, purpose: str, hint: str | None = None) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed",
            f"pip install 'nsn-edge[{extra}]'" if hint is None else hint,
        )
        self.package = package
        self.extra = extra


class CheckpointError(NsnEdgeError):
    """A checkpoint that is missing, damaged, or written by a newer version."""


class TrainingError(NsnEdgeError):
    """Training could not go on. What was saved before is intact."""


class BundleError(NsnEdgeError):
    """A bundle that is missing, truncated, altered, or written by a newer version."""


class ExportError(NsnEdgeError):
    """Tracing, lowering or writing a bundle failed. The previous bundle, if any, is intact."""


class VerificationError(NsnEdgeError):
    """An exported graph disagrees with torch by more than the tolerance."""


class ServingError(NsnEdgeError):
    """A request was refused or given up before it ran."""


class QueueFullError(ServingError):
    """As many requests wait as may. The sender may try again later, or send less."""


class DeadlineError(ServingError):
    """A request's deadline passed while it waited. It was not run."""


class EngineError(NsnEdgeError):
    """An inference engine could not load or run a graph."""


class InputError(EngineError):
    """Inputs that do not fit the graph: no engine could have run them."""


class NoRungError(EngineError):
    """The rung that was asked failed, and so did every other that could be tried."""


class ClosedError(EngineError):
    """Asked of a session or a server that was closed."""


class ProviderError(EngineError):
    """onnxruntime's provider that was asked for is not there, did not start, or left the work to the processor."""


class StaleEngineError(EngineError):
    """A built engine that is not for this bundle, device or library version, or is damaged. It is never executed."""
