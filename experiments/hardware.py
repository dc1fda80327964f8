"""What a run made of its devices: utilisation, memory and energy."""

import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

Json = dict[str, Any]


class Chip(NamedTuple):
    """What the maker says of a device.

    Attributes:
      flops: operations per second with 16-bit numbers and dense matrices.
      watts: rated power (thermal design or board power); None where the maker tells none.
    """

    flops: float
    watts: float | None


# By jax's `device_kind`. Peaks in bfloat16 without sparsity, of which NVIDIA's tables give twice as
# much where they say "with sparsity". From its data sheets of the A100 (2022), H100 (2023), H200
# (2024), L4 and L40S (2023); for TPUs from cloud.google.com/tpu/docs (v4, v5e, v5p, v6e), where no
# power is given.
CHIPS = {
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 400),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 400),
    "NVIDIA A100-PCIE-40GB": Chip(312e12, 250),
    "NVIDIA A100 80GB PCIe": Chip(312e12, 300),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 700),
    "NVIDIA H100 PCIe": Chip(756e12, 350),
    "NVIDIA H200": Chip(989e12, 700),
    "NVIDIA L4": Chip(121e12, 72),
    "NVIDIA L40S": Chip(362e12, 350),
    "TPU v4": Chip(275e12, None),
    "TPU v5 lite": Chip(197e12, None),
    "TPU v5": Chip(459e12, None),
    "TPU v6 lite": Chip(918e12, None),
}


def local(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Those of this process."""
    return [device for device in devices if device.process_index == jax.process_index()]


def utilisation(flops_per_second: float | None, devices: Sequence[jax.Device]) -> float | None:
    """The share of the devices' peak that a run achieved; None where either is not known.

    The peak is that of dense 16-bit matrices, whatever the run computes in.
    """
    chip = CHIPS.get(devices[0].device_kind)
    if chip is None or flops_per_second is None:
        return None
    return flops_per_second / (chip.flops * len(devices))


def peak_memory(devices: Sequence[jax.Device]) -> Json:
    """The most memory that this process has used since it began.

    Returns:
      `{"bytes": ..., "of": "device"}` for the fullest of the devices, where they keep count;
      `{"bytes": ..., "of": "process"}`, resident in the host's memory, where they do not.
    """
    counts = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
    known = [count for count in counts if count is not None]
    if known:
        return {"bytes": max(known), "of": "device"}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "of": "process"}


class EnergyMeter:
    """The energy that devices take from its making on.

    Args:
      devices: of this process.
      clock: gives seconds.
    """

    def __init__(
        self, devices: Sequence[jax.Device], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._devices = devices
        self._clock = clock
        self._began = clock()
        self._before = _millijoules(devices)

    def read(self) -> Json:
        """So far, in joules, and how that is known.

        Returns:
          `{"joules": ..., "how": ..., "note": ...}`. How is "measured" where NVIDIA's driver counts
          and the package pynvml is there to ask it: all that the cards took, whoever used them. It
          is "estimated" where only the rated power is known, which a device seldom takes in full.
          Otherwise joules and how are None, and the note says why.
        """
        seconds = self._clock() - self._began
        kind, count = self._devices[0].device_kind, len(self._devices)
        after = None if self._before is None else _millijoules(self._devices)
        if self._before is not None and after is not None:
            note = f"by the driver's counters of {count} x {kind}, others' work included"
            return {"joules": (after - self._before) / 1000, "how": "measured", "note": note}
        chip = CHIPS.get(kind)
        if chip is None or chip.watts is None:
            note = f"no counter that can be read, and the rated power of {kind} is not known"
            return {"joules": None, "how": None, "note": note}
        note = f"{count} x {kind} at its rated {chip.watts:.0f} W for {seconds:.1f} s"
        return {"joules": chip.watts * count * seconds, "how": "estimated", "note": note}


def _millijoules(devices: Sequence[jax.Device]) -> int | None:
    """The counters of NVIDIA's driver, added up; None where one of them cannot be read."""
    if devices[0].platform != "gpu":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return sum(
            pynvml.nvmlDeviceGetTotalEnergyConsumption(_handle(pynvml, device))
            for device in devices
        )
    except (pynvml.NVMLError, LookupError, ValueError):
        return None


def _handle(pynvml: Any, device: jax.Device) -> Any:
    """The driver's name for a device, which counts those that CUDA does not show to us too.

    Raises:
      LookupError: it is another kind of card, for CUDA may count in another order.
    """
    name = str(device.local_hardware_id)
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        name = visible.split(",")[int(name)].strip()
    if name.startswith("GPU-"):
        return pynvml.nvmlDeviceGetHandleByUUID(name)
    handle = pynvml.nvmlDeviceGetHandleByIndex(int(name))
    if pynvml.nvmlDeviceGetName(handle) != device.device_kind:
        raise LookupError(name)
    return handle
