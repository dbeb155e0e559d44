"""Sensors, read from folders that look like /sys of several machines; NVML by its real binding where it is installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from export.sensors import INSTALL_NVML, NAMES, Sensors


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_a_machine_without_sensors_says_why(tmp_path: Path) -> None:
    sensors = Sensors(gpu=False, root=tmp_path)
    assert set(sensors.unavailable) == {"cpu_mhz", "temperature_c", "power_w"} and all(sensors.unavailable.values())
    assert all(getattr(sensors.read(), name) is None for name in NAMES)


def test_a_computer(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    root = written(tmp_path, {
        f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq": "2600000",
        "sys/devices/system/cpu/cpu999/cpufreq/scaling_cur_freq": "1",
        "sys/class/thermal/thermal_zone0/temp": "41000", "sys/class/thermal/thermal_zone1/temp": "63500",
        "sys/class/thermal/thermal_zone2/temp": "-274000", "sys/class/thermal/thermal_zone3/temp": "",
        "sys/class/powercap/intel-rapl:0/energy_uj": "5000000", "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "9000000",
        "sys/class/powercap/intel-rapl:0:0/energy_uj": "77", "sys/class/powercap/intel-rapl:1/energy_uj": "1000000",
    })  # fmt: skip
    now = iter([10.0, 11.0, 12.0, 14.0])
    sensors = Sensors(gpu=False, root=root, clock=lambda: next(now))
    assert sensors.unavailable == {}
    written(root, {"sys/class/powercap/intel-rapl:0/energy_uj": "8000000", "sys/class/powercap/intel-rapl:1/energy_uj": "2000000"})
    found = sensors.read()
    assert (found.cpu_mhz, found.temperature_c, found.power_w) == (2600.0, 63.5, 4.0), "packages, without the cores inside them"
    written(root, {"sys/class/powercap/intel-rapl:0/energy_uj": "1000000"})
    assert sensors.read().power_w == 1.0, "its counter began again at 9 J: 2 J in 2 s"


def test_a_jetson(tmp_path: Path) -> None:
    root = written(tmp_path, {
        "sys/class/hwmon/hwmon0/name": "pwmfan", "sys/class/hwmon/hwmon0/in1_label": "VDD_IN",
        "sys/class/hwmon/hwmon1/name": "ina3221", "sys/class/hwmon/hwmon1/in1_label": "VDD_IN",
        "sys/class/hwmon/hwmon1/in1_input": "5000", "sys/class/hwmon/hwmon1/curr1_input": "1500",
        "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU", "sys/class/hwmon/hwmon1/in2_input": "5000",
        "sys/class/hwmon/hwmon1/curr2_input": "300", "sys/class/hwmon/hwmon1/temp1_input": "47000",
        "sys/class/devfreq/17000000.gpu/cur_freq": "306000000",
    })  # fmt: skip
    found = Sensors(gpu=False, root=root).read()
    assert (found.power_w, found.temperature_c, found.gpu_mhz) == (7.5, 47.0, 306.0)


def test_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    sensors = Sensors(gpu=True, root=tmp_path)
    assert INSTALL_NVML in sensors.unavailable["gpu_power_w"]

    class NVMLError(Exception):
        pass

    def unsupported(handle: object) -> int:
        raise NVMLError("not supported")

    fake, asked = ModuleType("pynvml"), list[object]()
    found = {
        "NVMLError": NVMLError, "NVML_CLOCK_SM": 1, "NVML_TEMPERATURE_GPU": 0, "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByIndex": asked.append, "nvmlDeviceGetHandleByUUID": asked.append,
        "nvmlDeviceGetClockInfo": lambda handle, kind: 1980, "nvmlDeviceGetTemperature": lambda handle, kind: 51,
        "nvmlDeviceGetPowerUsage": unsupported,
    }  # fmt: skip
    for name, value in found.items():
        setattr(fake, name, value)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    for visible, handle in (("2,0", 2), ("GPU-12ab", "GPU-12ab")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        sensors = Sensors(gpu=True, root=tmp_path)
        assert asked[-1] == handle and (sensors.read().gpu_mhz, sensors.read().gpu_temperature_c) == (1980, 51)
        assert "gpu_power_w" in sensors.unavailable and "gpu_mhz" not in sensors.unavailable


def test_the_real_binding_without_a_driver(tmp_path: Path) -> None:
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert "NVML does not answer" in Sensors(gpu=True, root=tmp_path).unavailable["gpu_mhz"]
    else:
        assert Sensors(gpu=True, root=tmp_path).read().gpu_mhz
