"""What tests of several folders share."""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from jax._src import compiler

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


def _accepted(options: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Those compiler options, or none where this version of XLA has them no longer."""
    try:
        jax.jit(lambda: 0).lower().compile(dict(options))
    except jax.errors.JaxRuntimeError:
        return []
    return options


OLDER_LOOPS = _accepted([("xla_cpu_use_fusion_emitters", False)])


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


@contextlib.contextmanager
def _most_optimisations_off(loops: list[tuple[str, bool]]) -> Iterator[None]:
    def options(*arguments: Any, **named: Any) -> Any:
        made = usual(*arguments, **named)
        made.env_option_overrides = [*made.env_option_overrides, *loops]
        return made

    before = jax.config.read("jax_disable_most_optimizations")
    usual = compiler.get_compile_options
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compiler, "get_compile_options", options)
        jax.config.update("jax_disable_most_optimizations", True)
        try:
            yield
        finally:
            jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def quickly() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Within it most of the compiler's optimisations are off, for compiling is what tests cost.

    XLA's older generator of loops for CPUs takes half the time of the newer one.
    """
    return lambda: _most_optimisations_off(OLDER_LOOPS)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(
    request: pytest.FixtureRequest, quickly: Callable[[], contextlib.AbstractContextManager[None]]
) -> Iterator[None]:
    """`quickly`, but in the contract, which chooses for each learner."""
    file = request.path.name
    if file == "test_contract.py":
        yield
        return
    with _most_optimisations_off([]) if file == "test_host.py" else quickly():
        yield
