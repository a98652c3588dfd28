"""Notebooks, run by nbmake; and what nbmake overlooks: failures that are on stderr only.

A wrong magic, a thread that raises and a message that a widget's handler fails on leave no ``error`` output, so a
notebook full of them is green.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import nbformat

__all__ = ["ROOT", "problems"]

ROOT = Path(__file__).resolve().parents[1]
NBMAKE = ["-m", "pytest", "--nbmake", "--overwrite", "--nbmake-timeout=170", "-p", "no:cacheprovider"]
FAILURE = re.compile(
    r"^(Traceback \(most recent call last\)|UsageError|\w+(\.\w+)*(Error|Exception)\b).*", re.MULTILINE
)


def problems(notebooks: Iterable[Path], folder: Path) -> list[str]:
    """Run copies of notebooks in `folder`, without a notebook server; return what went wrong, one line each."""
    copies = [Path(shutil.copy(notebook, folder)) for notebook in notebooks]
    env = {key: value for key, value in os.environ.items() if not key.startswith("JPY_")}
    env["OMP_NUM_THREADS"] = "1"  # torch gets slow when more threads than free cores wait for each other
    command = [sys.executable, *NBMAKE, *map(str, copies)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    found = [done.stdout[-4000:]] if done.returncode else []
    return found + [f"{copy.name}: {problem}" for copy in copies for problem in told_on_stderr(copy)]


def told_on_stderr(notebook: Path) -> Iterator[str]:
    """Yield the failures that cells of an executed notebook tell on stderr."""
    cells = nbformat.read(notebook, as_version=4).cells
    for number, cell in enumerate(cells):
        streams = [output.text for output in cell.get("outputs", ()) if output.get("name") == "stderr"]
        for match in FAILURE.finditer("".join(streams)):
            yield f"cell {number}: {match.group()}"
