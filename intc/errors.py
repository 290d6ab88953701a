"""Every error that intc raises on purpose, as one tree.

Each message is one line that names the file or node, the offending value and its bound, and what to do next.
The command line prints that line and exits with status 2; :class:`CheckFailed` exits with status 1.
"""

from __future__ import annotations


class IntcError(Exception):
    """Root of the tree; catch this to catch everything intc refuses.

    A message may quote a hostile file: characters that are not printable become spaces.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else " " for c in message))


def first_line(error: BaseException) -> str:
    """The first line of an error of another library, at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def beyond_limit(size: object, value: int, largest: int) -> str:
    """Why ``size``, which is ``value``, is refused; what is subtracted from a limit must be large enough."""
    if str(size).startswith("-"):
        return f"the inputs are too small: {size} is {value}; the model takes at most {largest}"
    return f"{size} is {value}; the model takes at most {largest}"


class UsageError(IntcError):
    """A front door was called with arguments that cannot work (unknown target, wrong keyword, missing
    file).
    """


class GraphError(IntcError):
    """An intermediate graph breaks a rule of the representation (undefined value, type mismatch, bad text
    form).
    """


class ImportFailure(IntcError):
    """An ONNX file cannot be read, is malformed, or names data it does not carry."""


class UnsupportedModel(ImportFailure):
    """The model is well formed but holds nodes that have no integer meaning; the message lists every one of
    them.

    ``problems`` holds ``(node, op, reason)`` triples.
    """

    def __init__(self, source: str, problems: list[tuple[str, str, str]]) -> None:
        self.problems = problems
        listed = "; ".join(f"node '{node}' ({op}): {reason}" for node, op, reason in problems)
        super().__init__(f"{source}: {len(problems)} unsupported node(s): {listed}")


class CalibrationError(IntcError):
    """Calibration data is missing, empty, NaN or infinite, or does not fit the model's inputs."""


class RangeUnknown(CalibrationError):
    """Without calibration data, nothing in the model says how large ``value`` becomes."""

    def __init__(self, value: str) -> None:
        self.value = value
        super().__init__(f"the range of '{value}' follows from no scale of the model; give calibration data")


class QuantizationError(IntcError):
    """An integer form cannot be proven to fit (accumulator overflow, scale out of range)."""


class CodegenError(IntcError):
    """No kernel can be generated for a node on the requested target."""


class ArtifactError(IntcError):
    """A ``.intc`` file cannot be trusted or understood."""


class ArtifactCorrupt(ArtifactError):
    """Truncated, altered or not an artifact at all: sizes or hashes do not agree with the manifest."""


class ArtifactVersion(ArtifactError):
    """Written by a format version that this runtime does not know."""


class ArtifactUntrusted(ArtifactError):
    """Not signed by a key that was asked for."""


class WrongTarget(ArtifactError):
    """The artifact's kernels need CPU features (or a device) that this machine lacks."""


class FeedError(IntcError):
    """An input given to ``Session.run`` has a wrong name, shape, type or value."""


class CheckFailed(IntcError):
    """A verification ran to the end and the answer is no."""


class AccuracyNotReached(CheckFailed):
    """No plan meets the accuracy target; ``tried`` holds a row for every plan that was judged."""

    def __init__(self, message: str, tried: list[dict[str, float | str]]) -> None:
        self.tried = tried
        super().__init__(message)
