"""Read the limits that networks must meet, and say by how much one exceeds them. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from export.codec import Positive, elided
from export.errors import Infeasible, InvalidInput
from hyctas.cost.workloads import CostModel, Costs

NAMES = {"ms": "latency in milliseconds", "fps": "frames per second", "params": "number of parameters", "mib": "memory in MiB"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a network's costs; None: no limit."""

    latency_ms: Positive | None = None
    parameters: Positive | None = None
    memory_mib: Positive | None = None
    least_ms: Positive | None = elided(None)
    """Least predicted latency: of faster networks, the supernet knows nothing."""

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Limits:
        """Read `fps=30`, `ms=33`, `params=2e6`, `mib=64`; of fps and ms, the stricter counts.

        Raises:
            InvalidInput: an unknown name, or a value that is no positive number.
        """
        found: dict[str, float] = {}
        for text in texts:
            name, equals, value = text.partition("=")
            try:
                number = float(value)
            except ValueError:
                number = 0.0
            if name not in NAMES or not equals or not 0 < number < float("inf"):
                allowed = ", ".join(f"{name}= ({what})" for name, what in NAMES.items())
                raise InvalidInput(f"limit {text!r} is not NAME=POSITIVE NUMBER; allowed: {allowed}")
            if name in found:
                raise InvalidInput(f"limit {name} is given twice")
            found[name] = number
        if "fps" in found:
            found["ms"] = min(found.get("ms", float("inf")), 1000 / found["fps"])
        return cls(latency_ms=found.get("ms"), parameters=found.get("params"), memory_mib=found.get("mib"))

    def excess(self, costs: Costs) -> list[float]:
        """Return, per limit, by which share a network breaks it (negative where it keeps it)."""
        pairs = (
            (costs.bound_ms, self.latency_ms), (costs.parameters, self.parameters), (costs.memory_mib, self.memory_mib),
        )  # fmt: skip
        least = [] if self.least_ms is None else [self.least_ms / costs.latency_ms - 1]
        return [value / limit - 1 for value, limit in pairs if limit is not None] + least

    def keeps(self, costs: Costs) -> bool:
        """Say whether a network meets all limits."""
        return all(excess <= 0 for excess in self.excess(costs))

    def check_feasible(self, model: CostModel) -> None:
        """Raise where not even the smallest network of the space meets the limits.

        Raises:
            Infeasible: with the costs of the smallest network beside the limits.
        """
        costs = model.costs(model.space.smallest())
        if replace(self, least_ms=None).keeps(costs):
            return
        lines = [
            f"{name}: limit {limit:.4g}, smallest network {value:.4g}"
            for name, limit, value in (
                (_latency_name(model), self.latency_ms, costs.bound_ms),
                ("parameters", self.parameters, costs.parameters),
                ("memory in MiB", self.memory_mib, costs.memory_mib),
            )
            if limit is not None
        ]
        raise Infeasible(
            f"no network of space {model.space.name} meets the limits:\n  " + "\n  ".join(lines)
            + "\nRaise the limits, choose a smaller size, a faster target, or a space with smaller widths."
        )  # fmt: skip


def _latency_name(model: CostModel) -> str:
    kind = "predicted" if model.confidence is None else f"bound of confidence {model.confidence:.0%}"
    return f"latency in ms ({kind})"
