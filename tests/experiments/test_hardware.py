"""Utilisation, memory and energy of made-up devices, with known answers."""

import resource
import sys
from types import ModuleType, SimpleNamespace

import jax
import pytest

from experiments import hardware, summaries
from experiments.hardware import EnergyMeter, peak_memory, utilisation
from paradigms.core.loop import Fitted


def device(kind="NVIDIA H200", memory=None, number=0, platform="gpu"):
    return SimpleNamespace(
        device_kind=kind,
        platform=platform,
        local_hardware_id=number,
        process_index=0,
        memory_stats=lambda: memory,
    )


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def nvml(monkeypatch):
    """A driver of three cards, the second of another kind, with a counter each."""
    driver = ModuleType("pynvml")
    driver.NVMLError = type("NVMLError", (Exception,), {})
    driver.kinds = ["NVIDIA H200", "NVIDIA L4", "NVIDIA H200"]
    driver.millijoules = [0, 0, 0]
    driver.nvmlInit = lambda: None
    driver.nvmlDeviceGetHandleByIndex = lambda index: index
    driver.nvmlDeviceGetHandleByUUID = {"GPU-b": 1, "GPU-c": 2}.__getitem__
    driver.nvmlDeviceGetName = driver.kinds.__getitem__
    driver.nvmlDeviceGetTotalEnergyConsumption = lambda index: driver.millijoules[index]
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return driver


def test_utilisation_is_the_share_of_all_peaks():
    h200 = device()
    assert utilisation(989e12 / 4, [h200]) == 0.25
    assert utilisation(989e12 / 4, [h200, h200]) == 0.125
    assert utilisation(None, [h200]) is None
    assert utilisation(1e9, jax.devices()[:1]) is None  # nobody knows the peak of "cpu"


def test_peaks_are_those_of_bfloat16_without_sparsity():
    """Where jax itself knows a chip, it agrees."""
    known = {"TPU v5 lite": 1.97e14, "TPU v5": 4.59e14, "TPU v6 lite": 9.18e14, "TPU v4": 2.75e14}
    assert {name: hardware.CHIPS[name].flops for name in known} == known


def test_memory_is_that_of_the_fullest_device_or_of_the_process():
    devices = [device(memory={"peak_bytes_in_use": n}) for n in (3, 8, 5)]
    assert peak_memory(devices) == {"bytes": 8, "of": "device"}
    ours = peak_memory([device(memory=None)])
    assert ours["of"] == "process"
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert 2**24 < ours["bytes"] <= resident * 1024  # an interpreter with jax has more than 16 MB


def test_energy_is_measured_where_the_driver_counts(nvml, monkeypatch):
    one = EnergyMeter([device(number=0)])
    both = EnergyMeter([device(number=0), device(number=2)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    by_index = EnergyMeter([device(number=0)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b,GPU-c")
    by_name = EnergyMeter([device(number=1)])
    nvml.millijoules[:] = [1000, 500, 3000]
    assert [by_name.read()[name] for name in ("joules", "how")] == [3.0, "measured"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert by_index.read()["joules"] == 3.0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert one.read()["joules"] == 1.0
    assert both.read()["joules"] == 4.0


def test_energy_is_else_the_rated_power_times_the_time(nvml, monkeypatch):
    # CUDA counts cards in another order than the driver: better an estimate than another's energy.
    other = EnergyMeter([device(number=1)], Clock())
    assert other.read()["how"] == "estimated"
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    clock = Clock()
    clock.now = 5.0
    meter = EnergyMeter([device(), device()], clock)
    clock.now = 15.0
    read = meter.read()
    assert (read["joules"], read["how"]) == (2 * 700 * 10, "estimated")
    assert read["note"] == "2 x NVIDIA H200 at its rated 700 W for 10.0 s"


def test_energy_that_is_not_known_says_why():
    read = EnergyMeter([device("TPU v4", platform="tpu")]).read()
    assert (read["joules"], read["how"]) == (None, None)
    assert "rated power of TPU v4 is not known" in read["note"]


def test_speed_is_of_all_runs_together():
    fitted = Fitted(None, 100, 3.0, 20.0, None, 5.0)
    energy = {"joules": 1.0, "how": "measured", "note": ""}
    devices = [device(memory={"peak_bytes_in_use": 7})] * 2
    speed = summaries.speed(
        fitted, examples=3 * 128, flops=2 * 989e12, devices=devices, energy=energy
    )
    assert speed == {
        "steps_this_session": 100,
        "steps_per_second": 5.0,
        "examples_per_second": 1920.0,
        "train_seconds": 20.0,
        "compile_seconds": 3.0,
        "host_wait_share": 0.25,
        "utilisation": 5.0,
        "peak_memory": {"bytes": 7, "of": "device"},
        "energy": energy,
    }
