"""Check arrays against what a session expects, with one wording for every runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from export.errors import InvalidInput
from export.runtime import TensorSpec


def check_feeds(inputs: Sequence[TensorSpec], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return the arrays in the order of `inputs`, contiguous.

    Raises:
        InvalidInput: a name is missing or unknown, or a shape or dtype differs.
    """
    wanted = [spec.name for spec in inputs]
    if set(feeds) != set(wanted):
        raise InvalidInput(f"the model takes the inputs {wanted}; got {sorted(feeds)}")
    arrays = []
    for spec in inputs:
        array = np.asarray(feeds[spec.name])
        if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
            wanted_text = f"input {spec.name!r} must be {spec.dtype} of shape {spec.shape}"
            raise InvalidInput(f"{wanted_text}; got {array.dtype} of shape {array.shape}")
        arrays.append(np.ascontiguousarray(array))
    return arrays


def random_feeds(inputs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    """Make inputs to time a model with, always the same.

    Floats are standard normal, bytes and flags uniform, and wider integers 1, since those are mostly indices or sizes.
    """
    random = np.random.default_rng(0)
    return {spec.name: _random(spec, random) for spec in inputs}


def _random(spec: TensorSpec, random: np.random.Generator) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b" or (dtype.kind in "iu" and dtype.itemsize == 1):
        return random.integers(0, 2 if dtype.kind == "b" else np.iinfo(dtype).max + 1, spec.shape).astype(dtype)
    if dtype.kind in "iu":
        return np.ones(spec.shape, dtype)
    return random.standard_normal(spec.shape).astype(dtype)


def dynamic_note(spec: TensorSpec) -> str:
    """Say of an output, described by what a run with random inputs gave, that its shape depends on the inputs."""
    return f"the shape of its output {spec.name!r} is known after a run alone; {spec.shape} for random inputs"
