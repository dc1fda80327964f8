"""One mode in a process of its own: what compiling it takes, its memory, and the way to its target.

Memory is the most that was resident of the process, as Linux counts it, once the mode was compiled
and had run a round, and beside it what was resident before the mode was made (Python and its
libraries, JAX's among them for PyTorch's modes too). On an accelerator it is the most that JAX took
of the device. Compilation finds nothing that was kept from before.

  python -m experiments.benchmarks.alone SYSTEM MODE UPDATES        one line of JSON
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.measuring import Mode, Target, kept_programs
from paradigms.core.errors import InputError

SEEDS = (0, 1, 2)
_KEPT = ("JAX_COMPILATION_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


def in_a_process(system: str, mode: str, updates: int) -> dict[str, Any]:
    """`figures` of a mode, from a process that ends with it.

    Raises:
      InputError: the process failed; its last line is in the message.
    """
    command = [sys.executable, "-m", "experiments.benchmarks.alone", system, mode, str(updates)]
    environment = {name: value for name, value in os.environ.items() if name not in _KEPT}
    # This code and no other, wherever the command was given.
    path = (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    with tempfile.TemporaryDirectory() as folder:
        environment["TORCHINDUCTOR_CACHE_DIR"] = folder
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise InputError(f"{system}, {mode}, in a process of its own: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def figures(mode: Mode, updates: int, target: Target | None) -> dict[str, Any]:
    """Compiles a mode, runs a round, then trains to the target from several seeds.

    Returns:
      JSON values: `compile_seconds`; `memory`, of what, in MiB; `target`, seconds and updates by
      seed, None where it was given up, and the median of the seconds, None if any was.
    """
    before = resident_mib()
    with kept_programs():
        ready = mode(updates)
        if ready is None:
            raise InputError("this mode is another one again here")
        ready.run()
        found: dict[str, Any] = {"compile_seconds": ready.compile_seconds, "memory": memory(before)}
        if target is not None and ready.reach is not None:
            reached = [ready.reach(target, seed) for seed in SEEDS]
            seconds = [None if one is None else one.seconds for one in reached]
            found["target"] = {
                "seconds": seconds,
                "updates": [None if one is None else one.updates for one in reached],
                "median_seconds": None if None in seconds else float(np.median(seconds)),  # type: ignore[arg-type]
            }
    return found


def resident_mib() -> float | None:
    """The most that was resident of this process, in MiB; None where Linux does not tell.

    (`getrusage` would do if it did not count what the parent had before it started this process.)
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    return int(found[1]) / 1024 if found else None


def memory(before: float | None) -> dict[str, Any]:
    """What was taken, of the device where that is not the CPU."""
    jax = sys.modules.get("jax")
    used: Any = jax and jax.local_devices()[0].memory_stats()
    if used:
        return {"of": "device", "peak_mib": used["peak_bytes_in_use"] / 2**20}
    return {"of": "process", "peak_mib": resident_mib(), "before_mib": before}


def main(system: str, mode: str, updates: int) -> None:
    """Prints the figures of a mode."""
    from experiments.benchmarks.systems import SYSTEMS

    measured = SYSTEMS[system]()
    modes = {**measured.ours, **measured.bare, **measured.peers}
    print(json.dumps(figures(modes[mode], updates, measured.target)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
