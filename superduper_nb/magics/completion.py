"""Tab completion of ``%sddb``: sub-commands, options, names; and of operators and fields in the body.

One matcher of IPython's second API, which is provisional: everything that depends on it is in this module. It speaks up
in our own cells and lines only, and asks the network through a :class:`~superduper_nb.magics.catalog.Catalog`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

from superduper_nb.errors import InvalidInputError
from superduper_nb.magics.catalog import Catalog
from superduper_nb.magics.command import Command
from superduper_nb.magics.problems import OPERATORS, STAGES
from superduper_nb.magics.session import CONNECTIONS, Connections, Target
from superduper_nb.magics.table import COMMANDS
from superduper_nb.widgets.map import LAYOUTS

if TYPE_CHECKING:
    from superduper_nb.client import Client

__all__ = ["Completions", "matcher"]

Names = Callable[["Client[dict[str, Any]]", "Target | None"], list[str]]

_LINE: Final = re.compile(r"^\s*(?:[\w.]+\s*=\s*)?%{1,2}sddb\s+(.*)$")
_BODY: Final = re.compile(r"^\s*%%sddb(\s|$)")
_NO_FIELDS: Final = (["model"], ["predict"])
COMPLETED: Final = 30
"""Documents that are looked at for the names of fields."""
_PATHS: Final = ("--file", "--config")
"""Options whose value is a file: IPython's own matcher knows those."""
_BINDING: Final = re.compile(r"^\s*\w+\s*<<\s*")
_FRAGMENT: Final = re.compile(r"\S*$")
_OPERATOR: Final = re.compile(r"\$\w*$")
_KEY: Final = re.compile(r"(?:^|[{,(])\s*(?P<quote>[\"']?)(?P<name>[\w.]+)$")
"""A field where a dict or a list of fields may name one."""
_REFERENCE: Final = re.compile(r"[\"']\$(?P<name>[\w.]*)$")
"""A field where an expression reads it: ``"$price"``."""

Found = tuple[str, list[tuple[str, str]]]
"""The fragment that is completed, and pairs of completion and its kind."""


class Completions:
    """Completes text, without IPython.

    Parameters
    ----------
    connections : Connections
        Whose names are offered.
    catalog : Catalog
        Keeps them.
    """

    def __init__(self, connections: Connections = CONNECTIONS, catalog: Catalog | None = None) -> None:
        self._connections = connections
        self._catalog = catalog or Catalog()

    def find(self, text: str, line: int, before: str) -> Found | None:
        """Complete at the cursor.

        Parameters
        ----------
        text : str
            The whole cell.
        line : int
            The cursor's line, from 0.
        before : str
            That line up to the cursor.

        Returns
        -------
        (str, list of (str, str)) or None
            None where this is no cell or line of ours.
        """
        if (match := _LINE.match(before)) is not None:
            return self._on_line(_BINDING.sub("", match.group(1)))
        head, _, _ = text.lstrip("\n").partition("\n")
        return self._in_body(head, before) if line and _BODY.match(head) else None

    def _in_body(self, head: str, before: str) -> Found | None:
        words = head.split()[1:]
        pipeline = "aggregate" in (words[:1] or [before])[0]
        found: list[tuple[str, str]] = []
        if (operator := _OPERATOR.search(before)) is not None:
            known = {*STAGES, *OPERATORS} if pipeline else OPERATORS
            found = _starting(operator.group(), known, "operator")
            if pipeline and (reference := _REFERENCE.search(before)) is not None:
                known_fields = _starting(reference["name"], self._listed("fields", words), "field")
                found += [(f"${name}", kind) for name, kind in known_fields]
            return operator.group(), found
        if (key := _KEY.search(before)) is not None and words[:1] not in _NO_FIELDS:
            # A name with dots is completed in quotes only: bare, it is no key.
            fields = [name for name in self._listed("fields", words) if key["quote"] or "." not in name]
            found = _starting(key["name"], fields, "field")
            return (key["name"], found) if found else None
        return None

    def _on_line(self, rest: str) -> Found | None:
        fragment_match = _FRAGMENT.search(rest)
        fragment = fragment_match.group() if fragment_match else ""
        words = rest[: len(rest) - len(fragment)].split()
        if not words:
            return fragment, _starting(fragment, COMMANDS, "command")
        if words[-1] in _PATHS:
            return None
        if (command := COMMANDS.get(words[0])) is None:
            return fragment, []
        return fragment, self._argument(command, words[1:], fragment)

    def _argument(self, command: Command, words: list[str], fragment: str) -> list[tuple[str, str]]:
        option = words[-1] if words else ""
        if (choose := self._of_option(command, option, words)) is not None:
            return _starting(fragment, *choose)
        if fragment.startswith("-"):
            return _starting(fragment, command.parser.options, "option")
        names = self._of_position(command, words, fragment)
        return _starting(fragment, *names) if names else _starting(fragment, command.parser.options, "option")

    def _of_option(self, command: Command, option: str, words: list[str]) -> tuple[Iterable[str], str] | None:
        if option in ("--on", "--close", "--name"):
            return [connection.name for connection in self._connections], "connection"
        if option == "--index":
            return self._listed("indexes", words), "index"
        if option == "--in":
            return self._listed("collections", words), "collection"
        if option in ("--fields", "--sort", "--group-by", "--label", "--color"):
            return self._listed("fields", words), "field"
        if option == "--layout":
            return LAYOUTS, "layout"
        if option == "--as" and command.name in ("find", "aggregate"):
            return ("gallery", "json", "pandas", "table"), "form"
        return None

    def _of_position(self, command: Command, words: list[str], fragment: str) -> tuple[Iterable[str], str] | None:
        if words and not words[-1].startswith("-"):
            return None
        if command.name == "use":
            return self._listed("collections", words), "collection"
        if command.name == "distinct":
            return self._listed("fields", words), "field"
        if command.name == "predict":
            return self._listed("models", words), "model"
        return None

    def _listed(self, kind: str, words: list[str]) -> tuple[str, ...]:
        """Return names of one kind, of the connection and the collection that the line names."""
        if (named := _value(words, "--on")) is not None:
            connection = next((each for each in self._connections if each.name == named), None)
        else:
            connection = self._connections.current  # none is opened for a completion
        if connection is None:
            return ()
        chosen, target = _value(words, "--in"), connection.target
        if chosen is not None:
            with suppress(InvalidInputError):  # still being typed
                target = Target.parse(chosen)
        client = connection.client
        return self._catalog.names((kind, connection.name, str(target)), lambda: _ASK[kind](client, target))


def _value(words: list[str], option: str) -> str | None:
    """Return what follows an option of the line."""
    return dict(pairwise(words)).get(option)


def _starting(fragment: str, names: Iterable[str], kind: str) -> list[tuple[str, str]]:
    return [(name, kind) for name in sorted(names) if name.startswith(fragment)]


def _collections(client: Client[dict[str, Any]], target: Target | None) -> list[str]:
    from superduper_nb.magics.looking import SERVERS_OWN, collection_names

    databases = [name for name in client.list_database_names() if name not in SERVERS_OWN]
    return [f"{name}.{each}" for name in databases for each in collection_names(client[name])]


def _indexes(client: Client[dict[str, Any]], target: Target | None) -> list[str]:
    if target is None or not target.collection:
        return []
    return list(client[target.database][target.collection].semantic_indexes)


def _fields(client: Client[dict[str, Any]], target: Target | None) -> list[str]:
    from superduper_nb.magics.fields import sampled

    if target is None or not target.collection:
        return []
    fields, _ = sampled(client[target.database][target.collection], COMPLETED)
    return [each.name for each in fields if each.name.partition(".")[0] != "_outputs"]


def _models(client: Client[dict[str, Any]], target: Target | None) -> list[str]:
    return [] if target is None else list(client[target.database].models)


_ASK: Final[dict[str, Names]] = {
    "collections": _collections,
    "fields": _fields,
    "indexes": _indexes,
    "models": _models,
}
_COMPLETIONS: Final = Completions()


@context_matcher(identifier="superduper_nb", priority=100)  # type: ignore[untyped-decorator]
def matcher(context: CompletionContext) -> SimpleMatcherResult:
    """Offer completions in our own cells; silence the others where these are all there can be."""
    found = _COMPLETIONS.find(context.full_text, context.cursor_line, context.text_until_cursor)
    if found is None:
        return {"completions": []}
    fragment, names = found
    completions: list[Any] = [SimpleCompletion(text=name, type=kind) for name, kind in names]
    return {"completions": completions, "matched_fragment": fragment, "suppress": True}
