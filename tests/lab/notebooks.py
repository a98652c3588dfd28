"""Notebooks that tests write."""

from __future__ import annotations

import nbformat
from nbformat import v4

__all__ = ["code_cells", "new_notebook"]

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def new_notebook(*cells: str) -> str:
    """Return a notebook of code cells."""
    written: str = v4.writes(v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in cells], metadata=KERNEL))
    return written


def code_cells(text: str) -> dict[int, str]:
    """Return the sources of a notebook's code cells, by their place among all cells."""
    cells = nbformat.reads(text, as_version=4).cells
    return {number: cell.source for number, cell in enumerate(cells) if cell.cell_type == "code"}
