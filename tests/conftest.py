"""What tests of several folders share."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

# Thousands of traced programs stay alive: walking over them takes a fifth of the tests' time.
gc.set_threshold(100_000, 20, 50)

# Compiling is three quarters of it: programs are kept for the next time, and for the processes that
# tests start. `make clean` removes them.
KEPT = {
    "jax_compilation_cache_dir": str(Path(__file__).parents[1] / ".cache" / "xla"),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for name, value in KEPT.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)


def pytest_configure(config: pytest.Config) -> None:
    """Takes XLA's older generator of loops for CPUs in `make test`: it compiles in half the time.

    `make test-slow` takes the one that users get. An option that XLA does not know would end the
    process, so this one is for versions that are known to have it.
    """
    if config.option.markexpr == "not slow" and jax.__version_info__ < (0, 12):
        given = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {given}"


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Names of what the compiler was called for since the test began, or since `clear`."""
    events: list[str] = []

    def listen(name: str, *_: object, **__: object) -> None:
        if "backend_compile" in name:
            events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Turns most of the compiler's optimisations off, for compiling is what tests cost.

    The contract is about bits, which these optimisations are known to change. `make test-slow` has
    it once more, with just the programs that users get.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    quick = request.path.name != "test_contract.py"
    jax.config.update("jax_disable_most_optimizations", quick or before)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
