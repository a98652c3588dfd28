"""Write the sub-commands and their Python twins into ``docs/notebook.md``, from the sub-commands themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from superduper_nb.magics.table import COMMANDS

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "notebook.md"
_TABLE: Final = re.compile("<!-- twins -->.*<!-- /twins -->", re.DOTALL)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text()))
    print(PAGE)


def page(text: str) -> str:
    """Return the page with the table as it is now."""
    rows = [f"| `{name}` | {_cells(command.twins)} |" for name, command in COMMANDS.items()]
    table = "\n".join(["<!-- twins -->", "| `%sddb` | Python |", "|---|---|", *rows, "<!-- /twins -->"])
    return _TABLE.sub(lambda _: table, text)


def _cells(twins: tuple[str, ...]) -> str:
    return ", ".join(f"`{twin}`" for twin in twins)


if __name__ == "__main__":
    main()
