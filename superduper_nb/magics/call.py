"""One use of ``%sddb``: what a sub-command's function gets, and what it asks for."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from superduper_nb.errors import InvalidInputError
from superduper_nb.magics.body import Body, parse
from superduper_nb.magics.session import DEFAULT, Connection, Connections, Target
from superduper_nb.widgets.results import MOST_ROWS

if TYPE_CHECKING:
    from superduper_nb.client import Collection, Database

__all__ = ["DEFAULTS", "FETCHED", "Call", "Options"]

FETCHED: Final = 20
"""Documents of a find without ``-n``, as in mongosh."""


@dataclass(frozen=True, slots=True)
class Options:
    """What ``%config SuperduperMagics`` sets.

    Attributes
    ----------
    display_limit : int
        Most rows of a result to show.
    fetch_limit : int
        Documents that are read where no ``-n`` says how many.
    """

    display_limit: int = MOST_ROWS
    fetch_limit: int = FETCHED


DEFAULTS: Final = Options()


@dataclass
class Call:
    """Arguments, body and surroundings of one sub-command.

    Attributes
    ----------
    args : Namespace
        The parsed line.
    connections : Connections
        Those of the session.
    names : mapping
        The user's namespace; never written to.
    cell : str or None
        The body; None for a line.
    options : Options
        What is meant where the line says nothing.
    scope : dict or None
        The user's namespace itself, for a cell that defines something there.
    bindings : dict
        Names to bind in the user's namespace when the sub-command succeeds.
    quiet : bool
        Whether a semicolon ended the body: the result is not to be shown.
    """

    args: Namespace
    connections: Connections
    names: Mapping[str, Any] = field(default_factory=dict)
    cell: str | None = None
    options: Options = DEFAULTS
    scope: dict[str, Any] | None = None
    bindings: dict[str, Any] = field(default_factory=dict)
    quiet: bool = False

    @property
    def connection(self) -> Connection:
        """The connection that ``--on`` names, or the current one."""
        return self.connections.get(self.args.on or "")

    @property
    def target(self) -> Target:
        """The database or collection that ``--in`` names, or the one in use."""
        if chosen := getattr(self.args, "target", None):
            return Target.parse(chosen)
        if (used := self.connection.target) is None:
            raise InvalidInputError(
                "no collection is in use: %sddb use database.collection, or give --in database.collection."
            )
        return used

    @property
    def database(self) -> Database[dict[str, Any]]:
        """The database to work on."""
        return self.connection.client[self.target.database]

    @property
    def collection(self) -> Collection[dict[str, Any]]:
        """The collection to work on."""
        target = self.target
        if not target.collection:
            raise InvalidInputError(
                f"only the database {target} is in use: %sddb use {target}.collection, or give --in."
            )
        return self.connection.client[target.database][target.collection]

    @property
    def source(self) -> str:
        """The collection, for the footer of results; and the connection, where it was given a name."""
        name = self.connection.name
        return str(self.target) if name == DEFAULT else f"{name}: {self.target}"

    @cached_property
    def body(self) -> Body | None:
        """The body, read; None where there is none."""
        if self.cell is None or not self.cell.strip():
            return None
        body = parse(self.cell, self.names)
        self.quiet = body.quiet
        return body

    def value(self) -> Any:
        """Return the value of the body, which must be there."""
        if self.body is None:
            raise InvalidInputError("the body is empty.")
        return self.body.evaluate(self.names)

    def filter(self) -> dict[str, Any]:
        """Return the body as a filter; an empty one matches everything."""
        if self.body is None:
            return {}
        value = self.value()
        if not isinstance(value, Mapping):
            raise InvalidInputError(f'the body is a filter, such as {{"price": {{"$lt": 50}}}}, not {_kind(value)}.')
        return dict(value)


def _kind(value: Any) -> str:
    return f"a value of type {type(value).__name__}"
