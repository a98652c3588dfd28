"""What is checked in: pinned versions, stripped notebooks, no trace of the machine it was written on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][0-9A-Za-z.]*(; .+)?")
FOREIGN = re.compile(r"--(?:extra-)?index-url|--find-links|https?://[^\s/]*/(?:[^\s/]+/)?simple/?(?=\s|$)")


def checked_in() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_constraint_is_one_pinned_version() -> None:
    assert pins()[0].startswith("torch==")
    assert [line for line in pins() if not PIN.fullmatch(line)] == []


def test_constraints_meet_every_requirement() -> None:
    pinned = {canonicalize_name(pin.name): pin for pin in map(Requirement, pins())}
    required = [
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
    for requirement in map(Requirement, required):
        name = canonicalize_name(requirement.name)
        if name != canonicalize_name(PROJECT["name"]):
            (version,) = pinned[name].specifier
            assert requirement.specifier.contains(version.version), requirement


def test_no_file_names_this_machine_or_a_package_index() -> None:
    here = {str(ROOT), str(Path.home() / "x")[:-1], sys.prefix}
    traces = []
    for path in checked_in():
        text = path.read_text("utf-8", errors="ignore")
        if path != Path(__file__) and (
            FOREIGN.search(text) or any(folder in text for folder in here if len(folder) > 6)
        ):
            traces.append(path.relative_to(ROOT))
    assert traces == []


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebook_holds_no_outputs(path: Path) -> None:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    run = [cell["id"] for cell in cells if cell["cell_type"] == "code" and (cell["outputs"] or cell["execution_count"])]
    assert run == []


def test_rooms_import_only_from_the_rooms_below_them() -> None:
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
