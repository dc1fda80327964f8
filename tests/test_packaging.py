"""What a clone needs before its first line runs: dependencies, pins, a quick import."""

import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = (ROOT / "constraints.txt").read_text().splitlines()
# What is optional must not be paid for by those who only import the library. (Flax brings rich.)
OPTIONAL = ["tensorflow", "tensorflow_datasets", "grain", "PIL", "sklearn", "matplotlib", "tyro"]


def direct_dependencies():
    listed = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    requirements = [Requirement(line) for line in listed]
    return [each for each in requirements if each.name != PROJECT["name"]]


def test_the_promised_extras_exist():
    promised = "data rl text augment atari experiments bench cuda12 cuda13 tpu dev"
    assert set(promised.split()) <= set(EXTRAS)
    nested = [Requirement(line) for extra in EXTRAS.values() for line in extra]
    named = {name for each in nested if each.name == PROJECT["name"] for name in each.extras}
    assert named <= set(EXTRAS)


def test_the_core_puts_no_cap_on_jax():
    jax = next(each for each in map(Requirement, PROJECT["dependencies"]) if each.name == "jax")
    assert [specifier.operator for specifier in jax.specifier] == [">="]


@pytest.mark.parametrize("line", PINS)
def test_a_constraint_is_a_pin_and_names_no_host(line):
    assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; [^:/@]+)?", line)
    Requirement(line)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_direct_dependency_has_one_pin_that_satisfies_it(python):
    environment = {
        **default_environment(),
        **{"python_version": python, "python_full_version": f"{python}.1"},
        **{"sys_platform": "linux", "platform_machine": "x86_64"},
    }
    pins = {}
    for requirement in map(Requirement, PINS):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in pins, f"{name} is pinned twice on Python {python}"
            pins[name] = next(iter(requirement.specifier)).version
    for requirement in direct_dependencies():
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} has no pin: compile constraints.txt again"
        assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"


def test_import_is_quick_and_brings_nothing_optional():
    # Processor time, the better of two: a busy machine or a cold disk is not the library's fault.
    program = (
        "import json, sys, time; import paradigms, nets; "
        f"loaded = [name for name in {OPTIONAL} if name in sys.modules]; "
        "print(json.dumps([time.process_time(), loaded]))"
    )
    runs = []
    for _ in range(2):
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
        )
        runs.append(json.loads(result.stdout))
    assert runs[0][1] == []
    assert min(seconds for seconds, _ in runs) < 3


def test_types_travel_with_the_packages():
    marked = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for package, files in marked["package-data"].items():
        assert files == ["py.typed"]
        assert (ROOT / package / "py.typed").exists()
        assert importlib.util.find_spec(package) is not None


def test_files_that_the_project_names_exist():
    for name in (PROJECT["readme"], *PROJECT["license-files"], "CHANGELOG.md", "CITATION.cff"):
        assert (ROOT / name).stat().st_size > 0, name
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    version = PROJECT["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_continuous_integration_calls_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert script.read_text().rstrip().endswith("exec make test")
    assert os.fspath(ROOT) not in script.read_text()
