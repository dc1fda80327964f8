"""Imports run one way: this reads every import of the library and fails when one runs back."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PARADIGMS = ("supervised", "unsupervised", "self_supervised", "semi_supervised", "reinforcement")


class Rule(NamedTuple):
    """What a folder may import besides the standard library and itself.

    Attributes:
      anywhere: allowed at the top of a module and inside functions.
      lazily: allowed inside functions only, for it is optional or slow to import.
    """

    anywhere: tuple[str, ...]
    lazily: tuple[str, ...] = ()


NUMERICS = ("jax", "numpy", "optax", "chex", "flax.struct")
RULES = {
    "nets": Rule(("jax", "numpy", "flax")),
    "paradigms": Rule(("paradigms.core",)),
    "paradigms.core": Rule(
        (*NUMERICS, "orbax"), lazily=("rich", "matplotlib", "scipy", "safetensors")
    ),
    "paradigms.data": Rule(
        ("jax", "numpy", "chex", "paradigms.core"),
        lazily=(
            *("tensorflow_datasets", "importlib_resources", "grain", "PIL", "sklearn", "dm_pix"),
            "tokenizers",
        ),
    ),
    **{
        f"paradigms.{name}": Rule(
            (
                *(*NUMERICS, "paradigms.core", "nets.net"),
                *("paradigms.data.augment", "paradigms.data.images", "paradigms.data.patches"),
            )
        )
        for name in PARADIGMS
    },
}
RULES["paradigms.reinforcement"] = RULES["paradigms.reinforcement"]._replace(
    lazily=("gymnax", "gymnasium", "ale_py", "pgx", "PIL", "matplotlib")
)


def imports(tree: ast.AST, module: str, package: bool) -> Iterator[tuple[int, str, bool]]:
    """Yields (line, full dotted name, whether at the top level) of every import in a module."""

    def visit(node: ast.AST, top: bool) -> Iterator[tuple[int, str, bool]]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, top
        elif isinstance(node, ast.ImportFrom):
            parent = node.module or ""
            if node.level:
                parts = module.split(".")
                base = parts[: len(parts) - node.level + package]
                parent = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{parent}.{alias.name}", top
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, str(node.args[0].value), top
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, top and not lazy)

    return visit(tree, True)


def violations(source: str, path: str) -> list[str]:
    """The imports that break a rule in `source`, the text of the file `path` (from the root)."""
    parts = Path(path).with_suffix("").parts
    package = parts[-1] == "__init__"
    parts = parts[:-1] if package else parts
    folder = ".".join(parts[: 1 if parts[0] == "nets" else 2])
    if folder not in RULES and len(parts) > 2:
        return [f"{path}: folder {folder} has no rule"]
    rule = RULES.get(folder, RULES["paradigms"])
    own = folder if folder in RULES else "paradigms"

    def within(name: str, allowed: tuple[str, ...]) -> bool:
        return any(f"{name}.".startswith(f"{prefix}.") for prefix in allowed)

    found = []
    for line, name, top in imports(ast.parse(source), ".".join(parts), package):
        if name.split(".")[0] in sys.stdlib_module_names or within(name, rule.anywhere):
            continue
        # The root of the package sees the core alone, not all that lies below it.
        if own != "paradigms" and within(name, (own,)):
            continue
        if within(name, rule.lazily):
            if top:
                found.append(f"{path}:{line}: import {name} inside the function that needs it")
            continue
        found.append(f"{path}:{line}: {own} must not import {name}")
    return found


def modules() -> list[Path]:
    files = [path for top in ("paradigms", "nets") for path in sorted((ROOT / top).rglob("*.py"))]
    return [path.relative_to(ROOT) for path in files]


@pytest.mark.parametrize("path", modules(), ids=str)
def test_imports_run_one_way(path):
    assert violations((ROOT / path).read_text(), path.as_posix()) == []


def test_every_top_folder_is_known():
    folders = {path.parts[1] for path in modules() if path.parts[0] == "paradigms"}
    folders = {name for name in folders if not name.endswith(".py")}
    assert {"core", "data", "supervised"} <= folders <= {"core", "data", *PARADIGMS}


def test_there_is_no_utils():
    tops = [ROOT / name for name in ("paradigms", "nets", "experiments", "tests")]
    names = [path for top in tops for path in top.rglob("util*") if "__pycache__" not in path.parts]
    assert names == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("nets/mlp.py", "from paradigms.core.errors import InputError"),
        ("nets/mlp.py", "import optax"),
        ("paradigms/__init__.py", "from paradigms import supervised"),
        ("paradigms/__init__.py", "import rich"),
        ("paradigms/core/loop.py", "import rich"),
        ("paradigms/core/loop.py", "try:\n    import rich\nexcept ImportError:\n    rich = None"),
        ("paradigms/core/loop.py", "class A:\n    from rich import print"),
        ("paradigms/core/loop.py", "def f():\n    import tyro"),
        ("paradigms/core/loop.py", "from flax import linen as nn"),
        ("paradigms/core/loop.py", "import flax"),
        ("paradigms/core/loop.py", "from nets.net import Net"),
        ("paradigms/core/loop.py", "from .. import data"),
        ("paradigms/core/__init__.py", "from ..data import augment"),
        ("paradigms/core/loop.py", "def f():\n    from experiments import cli"),
        ("paradigms/data/folder.py", "from PIL import Image"),
        ("paradigms/data/folder.py", "def f():\n    import tensorflow"),
        ("paradigms/data/folder.py", "from paradigms.supervised import classifier"),
        ("paradigms/supervised/a.py", "from nets.mlp import mlp"),
        ("paradigms/supervised/a.py", "from nets import mlp"),
        ("paradigms/supervised/a.py", "from paradigms.data import sets"),
        ("paradigms/supervised/a.py", "from paradigms.unsupervised.vae import vae"),
        ("paradigms/supervised/a.py", "def f():\n    import paradigms.unsupervised"),
        ("paradigms/supervised/a.py", "import importlib\nimportlib.import_module('experiments')"),
        ("paradigms/supervised_more/a.py", "import jax"),
    ],
)
def test_the_check_catches(path, source):
    assert len(violations(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("nets/mlp.py", "import math\nimport flax.linen as nn\nfrom nets.net import Net"),
        ("nets/mlp.py", "from flax import nnx\nfrom . import net"),
        ("paradigms/__init__.py", "from paradigms.core import Learner"),
        ("paradigms/core/loop.py", "import flax.struct\nfrom flax import struct\nimport jax.numpy"),
        ("paradigms/core/loop.py", "from paradigms.core import state\nfrom .state import rng"),
        ("paradigms/core/loop.py", "def f():\n    from rich.table import Table"),
        ("paradigms/data/sets.py", "def f():\n    from sklearn.datasets import load_digits"),
        (
            "paradigms/supervised/a.py",
            "from nets.net import Net\nfrom paradigms.data import augment",
        ),
    ],
)
def test_the_check_allows(path, source):
    assert violations(source, path) == []
