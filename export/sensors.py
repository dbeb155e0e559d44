"""Read clocks, temperature and power of this machine, each where the system tells it.

| value | read from |
|---|---|
| clock of the CPU | cpufreq, mean over the cores that this process may use |
| temperature | the hottest thermal zone, or sensor under hwmon where there is no zone |
| power | RAPL's energy counters of the CPU packages; on a Jetson its power monitor (INA3221) |
| clock, temperature and power of the GPU | NVML by nvidia-ml-py; on a Jetson, the clock from devfreq |
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from export.errors import first_line

INSTALL_NVML = "pip install nvidia-ml-py"
PLAUSIBLE_C = (-40.0, 150.0)
"""Temperatures that a sensor which works can have; others are marks of a sensor that is off."""
BOARD_RAILS = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0")
"""What a Jetson's power monitor calls the supply of the whole board."""


@dataclass(frozen=True)
class Reading:
    """What the sensors said at one moment; None where there is no such sensor."""

    cpu_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    """Since the reading before, where a counter tells it."""
    gpu_mhz: float | None = None
    gpu_temperature_c: float | None = None
    gpu_power_w: float | None = None


NAMES = {
    "cpu_mhz": ("CPU clock", "MHz"), "temperature_c": ("temperature", "°C"), "power_w": ("power", "W"),
    "gpu_mhz": ("GPU clock", "MHz"), "gpu_temperature_c": ("GPU temperature", "°C"), "gpu_power_w": ("GPU power", "W"),
}  # fmt: skip
"""Of the fields of `Reading`: name and unit."""


class Sensors:
    """The sensors of this machine.

    Args:
        gpu: whether its GPU's are wanted.
        root: where `/sys` is.
        clock: seconds, for power from counters of energy.
    """

    def __init__(self, gpu: bool, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._root, self._clock = root, clock
        self._nvml, self._why_not = _nvml() if gpu else (None, "")
        self._energy = self._joules()
        self._gpu_clock = next(_matching(root, "sys/class/devfreq", "*gpu*/cur_freq", "*.ga10b/cur_freq", "*.gv11b/cur_freq"), None)
        self.unavailable = self._unavailable(self.read(), gpu)
        """Why a value is missing, by field of `Reading`; a GPU's only where they are wanted."""

    def read(self) -> Reading:
        """Read every sensor."""
        return Reading(self._cpu_mhz(), self._temperature_c(), self._power_w(), *self._gpu())

    def _unavailable(self, found: Reading, gpu: bool) -> dict[str, str]:
        reasons = {
            "cpu_mhz": "the system has no cpufreq, as in most virtual machines",
            "temperature_c": "the system has neither a thermal zone nor a temperature under hwmon",
            "power_w": "no RAPL energy counter that this user may read, and no INA3221 power monitor",
        }  # fmt: skip
        if self._energy is not None:
            del reasons["power_w"]  # a counter has no power before its second reading
        if gpu:
            reasons |= dict.fromkeys(("gpu_mhz", "gpu_temperature_c", "gpu_power_w"), self._why_not or "the GPU does not tell")
        return {name: reason for name, reason in reasons.items() if getattr(found, name) is None}

    def _cpu_mhz(self) -> float | None:
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        paths = (self._root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq" for core in cores)
        found = [value / 1e3 for value in map(_number, paths) if value is not None]
        return sum(found) / len(found) if found else None

    def _temperature_c(self) -> float | None:
        for folder, pattern in (("sys/class/thermal", "thermal_zone*/temp"), ("sys/class/hwmon", "hwmon*/temp*_input")):
            found = [value / 1e3 for value in map(_number, _matching(self._root, folder, pattern)) if value is not None]
            plausible = [value for value in found if PLAUSIBLE_C[0] < value < PLAUSIBLE_C[1]]
            if plausible:
                return max(plausible)
        return None

    def _joules(self) -> tuple[float, dict[Path, float]] | None:
        """Return the moment and the counters of the CPU packages."""
        packages = _matching(self._root, "sys/class/powercap", "intel-rapl:[0-9]", "intel-rapl:[0-9][0-9]")
        found = {path: value for path in packages if (value := _number(path / "energy_uj")) is not None}
        return (self._clock(), found) if found else None

    def _power_w(self) -> float | None:
        if self._energy is None:
            return self._board_w()
        before, self._energy = self._energy, self._joules()
        if self._energy is None or self._energy[0] <= before[0]:
            return None
        total = 0.0
        for path, value in self._energy[1].items():
            used = value - before[1].get(path, value)
            total += used if used >= 0 else used + (_number(path / "max_energy_range_uj") or 0.0)  # the counter began again
        return total / 1e6 / (self._energy[0] - before[0])

    def _board_w(self) -> float | None:
        for folder in _matching(self._root, "sys/class/hwmon", "hwmon*"):
            if _text(folder / "name") != "ina3221":
                continue
            for label in sorted(folder.glob("in*_label")):
                number = label.name.removeprefix("in").removesuffix("_label")
                volts, amperes = _number(folder / f"in{number}_input"), _number(folder / f"curr{number}_input")
                if _text(label) in BOARD_RAILS and volts is not None and amperes is not None:
                    return volts * amperes / 1e6
        return None

    def _gpu(self) -> tuple[float | None, float | None, float | None]:
        if self._nvml is None:
            hertz = None if self._gpu_clock is None else _number(self._gpu_clock)
            return (None if hertz is None else hertz / 1e6), None, None
        nvml, handle = self._nvml
        mhz = _asked(nvml, lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
        celsius = _asked(nvml, lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        milliwatts = _asked(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        return mhz, celsius, None if milliwatts is None else milliwatts / 1e3


def gpu_used_mib() -> float | None:
    """Return how much memory of the GPU is in use, by whomever; None where NVML does not tell."""
    nvml, _ = _nvml()
    if nvml is None:
        return None
    found = _asked(nvml[0], lambda: nvml[0].nvmlDeviceGetMemoryInfo(nvml[1]).used)
    return None if found is None else found / 2**20


def _nvml() -> tuple[tuple[ModuleType, Any] | None, str]:
    """Return NVML and the GPU that CUDA calls 0, or why it cannot be asked."""
    try:
        import pynvml
    except ImportError:
        return None, f"the package nvidia-ml-py is not installed ({INSTALL_NVML})"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"
    try:
        pynvml.nvmlInit()
        if visible.isdigit():
            return (pynvml, pynvml.nvmlDeviceGetHandleByIndex(int(visible))), ""
        return (pynvml, pynvml.nvmlDeviceGetHandleByUUID(visible)), ""
    except pynvml.NVMLError as error:
        return None, f"NVML does not answer: {first_line(error)}"


def _asked(nvml: ModuleType, question: Callable[[], float]) -> float | None:
    try:
        return float(question())
    except nvml.NVMLError:  # not every GPU has every sensor
        return None


def _matching(root: Path, folder: str, *patterns: str) -> Iterator[Path]:
    return (path for pattern in patterns for path in sorted((root / folder).glob(pattern)))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None
