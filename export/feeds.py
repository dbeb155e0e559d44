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


def zeros(inputs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    """Make all-zero inputs."""
    return {spec.name: np.zeros(spec.shape, spec.dtype) for spec in inputs}
