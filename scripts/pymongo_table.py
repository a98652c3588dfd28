"""Write ``docs/pymongo.md``: every method of pymongo's classes, and what ours make of it, read from the code."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pymongo
import pymongo.collection
import pymongo.cursor
import pymongo.database

import superduper_nb as sd

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "pymongo.md"
CLASSES: Final[dict[type, type]] = {
    sd.Client: pymongo.MongoClient,
    sd.Database: pymongo.database.Database,
    sd.Collection: pymongo.collection.Collection,
    sd.Cursor: pymongo.cursor.Cursor,
}
HEAD: Final = """\
# pymongo, and more

`sd.Client` is a `pymongo.MongoClient`: take it where you took that one. Written by `scripts/pymongo_table.py` from the
classes themselves; "same" is pymongo's own code, "extended" does what pymongo does and what is said beside it.
pymongo's own tests run with this client in the place of `MongoClient` (`tests/client/test_pymongo_suite.py`).

In a database in which nothing is registered all of it is pymongo's, to the byte. Where something is registered, objects
that MongoDB does not know are encoded on the way in and decoded on the way out, new documents get a `_fold`, and writes
queue the jobs that follow from them. The first write of what pymongo would refuse and we can store (an array, a
picture) does as much as registering something.

What is registered on a collection stays when that is dropped or renamed, and holds for what is written under the name
from then on; `drop_database` takes all of it along.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())
    print(PAGE)


def page() -> str:
    """Return the text of the page."""
    return HEAD + "".join(map(section, CLASSES))


def section(ours: type) -> str:
    """Return what is to be said of one class."""
    base = CLASSES[ours]
    lines = [f"\n## {ours.__name__}\n", "| of pymongo | here | how |", "|---|---|---|"]
    lines += [f"| `{name}` | {how(ours, base, name)} |" for name in public(base)]
    lines += ["", "| added | what it is |", "|---|---|"]
    lines += [f"| `{name}` | {summary(vars_of(ours)[name])} |" for name in public(ours) if not hasattr(base, name)]
    return "\n".join(lines) + "\n"


def public(cls: type) -> Iterator[str]:
    """List what users call and read."""
    yield from (name for name in sorted(vars_of(cls)) if not name.startswith("_"))


def vars_of(cls: type) -> dict[str, Any]:
    """Return the attributes of a class and of those it is made from."""
    return {name: value for part in reversed(cls.__mro__[:-1]) for name, value in vars(part).items()}


def how(ours: type, base: type, name: str) -> str:
    """Say whether a method is pymongo's own, and what else it does."""
    mine, theirs = vars_of(ours)[name], vars_of(base)[name]
    if mine is theirs:
        return "same |"
    taken = {*parameters(theirs), *(parameters(pymongo.cursor.Cursor.__init__) if name == "find" else ())}
    new = [parameter for parameter in parameters(mine) if parameter not in taken]
    more = f" Adds {', '.join(f'`{parameter}`' for parameter in new)}." if new else ""
    return f"extended | {summary(mine)}{more}"


def parameters(method: Any) -> list[str]:
    """List the names of a method's own parameters."""
    known = inspect.signature(method).parameters.values()
    return [
        parameter.name
        for parameter in known
        if parameter.kind is not parameter.VAR_POSITIONAL and parameter.kind is not parameter.VAR_KEYWORD
    ]


def summary(attribute: Any) -> str:
    """Return the first sentence of what an attribute says of itself."""
    text = inspect.getdoc(attribute) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|").replace("``", "`")


if __name__ == "__main__":
    main()
