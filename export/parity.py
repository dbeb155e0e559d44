"""Prove that a session computes what a PyTorch module, or another session, computes. No torch here before a module is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import CheckFailed, InvalidInput
from export.feeds import check_feeds
from export.runtime import Session
from export.target import Target

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ParityReport:
    """The worst values over all inputs, and the limits that they were held against."""

    output: str
    """Name of the output that was compared."""
    inputs: int
    """How many images were compared."""
    seed: int
    finite: bool
    """Whether every value of both sides was finite."""
    max_abs_error: float | None
    """Largest absolute difference; None where only labels can be compared, or values were not finite."""
    relative_error: float | None
    """The largest difference of an image by the standard deviation of its reference."""
    label_agreement: float
    """Smallest share of pixels of an image that get the same label, logits that are equal but for rounding aside."""
    tolerance: float
    min_agreement: float
    passed: bool

    def __post_init__(self) -> None:
        check_claim(vars(self))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def summary(self) -> str:
        """Put the numbers and their limits in one sentence."""
        if not self.finite:
            return f"parity of {self.output!r}: values that are not finite occurred in {self.inputs} inputs"
        errors = ""
        if self.relative_error is not None:
            errors = f"error {self.relative_error:.2e} of the standard deviation (limit {self.tolerance:.2e}, "
            errors += f"absolute {self.max_abs_error:.2e}), "
        agreement = f"labels agree on {self.label_agreement:.4%} (limit {self.min_agreement:.4%})"
        return f"parity of {self.output!r} over {self.inputs} inputs: {errors}{agreement}"

    def raise_if_failed(self) -> None:
        """Raise `CheckFailed` with the numbers and the limits unless the check passed."""
        if not self.passed:
            raise CheckFailed(self.summary())


def check_claim(value: Mapping[str, Any]) -> None:
    """Refuse what is written as a parity report, or a part of one, and cannot be one, whoever wrote it.

    Raises:
        InvalidInput: a number that is none, negative or (a share) above 1, no inputs, or a verdict that its numbers contradict.
    """
    for name, highest in _CLAIMS.items():
        found = value.get(name)
        if found is None:
            continue
        number = isinstance(found, (int, float)) and not isinstance(found, bool) and abs(found) < 1e300
        if not number or not (name == "inputs") <= found <= highest:
            limit = "" if highest == math.inf else f" to {highest:g}"
            raise InvalidInput(f"{name} is {found!r}, not a number from {int(name == 'inputs')}{limit or ' on'}")
    agreement, relative = value.get("label_agreement"), value.get("relative_error")
    kept = (
        value.get("finite", True)
        and (agreement is None or agreement >= value.get("min_agreement", 0))
        and (relative is None or relative <= value.get("tolerance", math.inf))
    )
    if "passed" in value and bool(value["passed"]) and not kept:
        raise InvalidInput(f"it says that parity passed, and its numbers do not: label agreement {agreement}, error {relative}")


TIED = 1e-5
"""Difference of two logits, by the standard deviation, that is rounding in fp32; at small sizes one such pixel is 1 % of all."""
THREADS = 2
"""Of the reference, on every machine: its last digits depend on them, and equal exports shall have equal reports."""
_CLAIMS = {"inputs": math.inf, "seed": math.inf, "max_abs_error": math.inf, "relative_error": math.inf, "tolerance": math.inf}
_CLAIMS |= {"label_agreement": 1.0, "min_agreement": 1.0}
"""Numbers of a parity report, with the highest that each may be."""


def check_parity(
    module: nn.Module,
    session_or_path: Session | Path | str,
    inputs: Sequence[np.ndarray] | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    count: int = 3,
    tolerance: float = 1e-3,
    min_agreement: float = 0.999,
) -> ParityReport:
    """Compare a session with the module in fp32, eval mode, on a CPU.

    The session's output decides what is compared: `native` with `forward_native`, `panoptic` with `forward_panoptic`
    (logits, centres and offsets each by their own spread), `labels` with the argmax of the logits, anything else with the
    module's output.

    Args:
        module: the network as trained (BN not folded); its training flags are restored.
        session_or_path: an open session with one input and one output, or an ONNX file (opened on ONNX Runtime, CPU).
        inputs: (1, 3, H, W) float32 images, pre-processed, compared besides the random ones.
        size: (H, W) that the session must have; optional.
        seed: of the random images (standard normal).
        count: how many random images.
        tolerance: allowed largest difference, in standard deviations of the reference.
        min_agreement: required share of pixels with equal labels.

    Raises:
        InvalidInput: the session does not take one image of that size, or there is nothing to compare.
    """
    import torch

    from export.backends.torch_session import torch_threads
    from export.onnx.tracing import evaluating, on_cpu

    if isinstance(session_or_path, (str, Path)):
        from export.backends.onnxruntime_session import OnnxRuntime

        with OnnxRuntime(Target("onnxruntime-cpu", "fp32")).load_file(Path(session_or_path)) as opened:
            return check_parity(module, opened, inputs, size, seed, count, tolerance, min_agreement)
    session = session_or_path
    images = _images(session, inputs or (), size, seed, count)
    output = session.outputs[0].name
    module = on_cpu(module)
    compute: Any = getattr(module, f"forward_{output}") if output in ("native", "panoptic") else module

    def reference(image: np.ndarray) -> np.ndarray:
        with torch.autocast("cpu", enabled=False):
            values: np.ndarray = compute(torch.from_numpy(image)).numpy()
        return values.argmax(1) if output == "labels" and np.isfinite(values).all() else values

    with evaluating(module), torch.inference_mode(), torch_threads(THREADS):
        rows = _rows(reference, session, images, output)
    return _judge(rows, output, seed, tolerance, min_agreement)


def check_same(session: Session, reference: Session, tolerance: float, min_agreement: float) -> ParityReport:
    """Compare a session with another one of the same model, as `check_parity` does; outputs of integers are labels.

    Args:
        session: one input, one output.
        reference: what is right; its input has the same name.
        tolerance: as in `check_parity`.
        min_agreement: as in `check_parity`.

    Raises:
        InvalidInput: the sessions do not take the same input, or there is nothing to compare.
    """
    check_comparable(reference)
    images = _images(session, (), None, 0, 3)
    if [spec.name for spec in reference.inputs] != [spec.name for spec in session.inputs]:
        given = [[spec.name for spec in side.inputs] for side in (session, reference)]
        raise InvalidInput(f"parity compares one model with itself; the inputs are {given[0]} and {given[1]}")
    output = session.outputs[0].name
    compute = lambda image: reference.run({reference.inputs[0].name: image})[0]  # noqa: E731
    return _judge(_rows(compute, session, images, output), output, 0, tolerance, min_agreement)


def check_comparable(reference: Session) -> None:
    """Refuse a model that `check_same` cannot judge.

    Raises:
        InvalidInput: it has not one float32 input and one output: floats (N, C, ...), or integers.
    """
    kinds = [np.dtype(spec.dtype).kind for spec in reference.outputs]
    judged = kinds in (["i"], ["u"]) or (kinds == ["f"] and len(reference.outputs[0].shape) > 1)
    if [spec.dtype for spec in reference.inputs] != ["float32"] or not judged:
        inputs, outputs = ([f"{s.name} {s.dtype} {s.shape}" for s in side] for side in (reference.inputs, reference.outputs))
        wanted = "parity needs one float32 input, and one output of floats (N, C, ...) or of integers"
        raise InvalidInput(f"{wanted}; the model has the inputs {inputs} and the outputs {outputs}")


def _images(
    session: Session, inputs: Sequence[np.ndarray], size: tuple[int, int] | None, seed: int, count: int
) -> list[np.ndarray]:
    if len(session.inputs) != 1 or len(session.outputs) != 1:
        raise InvalidInput(
            f"parity needs one input and one output; the session has {len(session.inputs)} and {len(session.outputs)}"
        )
    spec = session.inputs[0]
    if size is not None and spec.shape[-2:] != tuple(size):
        raise InvalidInput(f"the session takes shape {spec.shape}; asked for size {size[0]}x{size[1]}")
    if count + len(inputs) < 1:
        raise InvalidInput("parity needs at least one image: give inputs or count >= 1")
    random = np.random.default_rng(seed)
    images = [random.standard_normal(spec.shape, np.float32) for _ in range(count)]
    return images + [check_feeds([spec], {spec.name: image})[0] for image in inputs]


def _rows(reference: Callable[[np.ndarray], np.ndarray], session: Session, images: Sequence[np.ndarray], output: str) -> list[_Row]:
    return [_compare(reference(image), session.run({session.inputs[0].name: image})[0], output) for image in images]


@dataclass(frozen=True)
class _Row:
    finite: bool
    absolute: float
    relative: float
    agreement: float


def _compare(reference: np.ndarray, found: np.ndarray, output: str) -> _Row:
    if not (np.isfinite(reference).all() and np.isfinite(found).all()):
        return _Row(False, math.inf, math.inf, 0.0)
    if reference.shape != found.shape:
        raise InvalidInput(f"the session's output {output!r} has shape {found.shape}; the reference gives {reference.shape}")
    if np.issubdtype(reference.dtype, np.integer):
        return _Row(True, math.nan, math.nan, float((reference == found).mean()))
    classes = reference.shape[1] - 3 if output == "panoptic" else reference.shape[1]
    groups = [(r, f) for r, f in zip(_groups(reference, classes), _groups(found, classes), strict=True)]
    absolute = max(float(np.abs(r - f).max()) for r, f in groups)
    relative = max(float(np.abs(r - f).max()) / _scale(r) for r, f in groups)
    return _Row(True, absolute, relative, _agreement(*groups[0]))


def _agreement(reference: np.ndarray, found: np.ndarray) -> float:
    """Return the share of pixels with the same label; where the reference's two logits are `TIED`, either label is right."""
    chosen = np.take_along_axis(reference, found.argmax(1)[:, None], axis=1)[:, 0]
    return float((reference.max(1) - chosen <= TIED * _scale(reference)).mean())


def _groups(values: np.ndarray, classes: int) -> list[np.ndarray]:
    """Take logits, centres and offsets apart."""
    return [part for part in np.split(values, [classes, classes + 1], axis=1) if part.size]


def _scale(reference: np.ndarray) -> float:
    """Return the spread; a constant has none: its magnitude is the next best scale, and 1 that of a zero one."""
    return float(reference.std()) or float(np.abs(reference).max()) or 1.0


def _judge(rows: Sequence[_Row], output: str, seed: int, tolerance: float, min_agreement: float) -> ParityReport:
    finite = all(row.finite for row in rows)
    numeric = finite and not any(math.isnan(row.relative) for row in rows)
    agreement = min(row.agreement for row in rows)
    relative = max(row.relative for row in rows) if numeric else None
    return ParityReport(
        output=output,
        inputs=len(rows),
        seed=seed,
        finite=finite,
        max_abs_error=max(row.absolute for row in rows) if numeric else None,
        relative_error=relative,
        label_agreement=agreement,
        tolerance=tolerance,
        min_agreement=min_agreement,
        passed=finite and agreement >= min_agreement and (relative is None or relative <= tolerance),
    )
