"""The sub-commands, and how a line and a cell become one of them; without IPython."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from superduper_nb.errors import InvalidInputError, did_you_mean
from superduper_nb.magics import (
    connecting,
    describing,
    exploring,
    exporting,
    looking,
    modelling,
    mongosh,
    querying,
    working,
    writing,
)
from superduper_nb.magics.call import DEFAULTS, Call, Options
from superduper_nb.magics.command import Command
from superduper_nb.magics.line import HelpShown, split
from superduper_nb.magics.problems import one_line
from superduper_nb.magics.session import CONNECTIONS, Connections
from superduper_nb.widgets.clean import shorten
from superduper_nb.widgets.listing import Note

__all__ = ["COMMANDS", "Outcome", "overview", "run"]

_TOPICS: Final[Mapping[str, tuple[ModuleType, ...]]] = {
    "the cluster": (connecting,),
    "what there is": (looking, describing),
    "finding": (querying, mongosh, exploring),
    "writing": (writing, exporting),
    "models": (modelling,),
    "jobs": (working,),
}
COMMANDS: Final[Mapping[str, Command]] = {
    command.name: command for modules in _TOPICS.values() for module in modules for command in module.COMMANDS
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a line or cell did.

    Attributes
    ----------
    value : Any
        What it gave.
    bindings : dict
        What to bind in the user's namespace.
    quiet : bool
        Whether not to show the value.
    """

    value: Any
    bindings: dict[str, Any] = field(default_factory=dict)
    quiet: bool = False


def run(
    line: str,
    cell: str | None = None,
    *,
    names: Mapping[str, Any] | None = None,
    connections: Connections = CONNECTIONS,
    options: Options = DEFAULTS,
    scope: dict[str, Any] | None = None,
) -> Outcome:
    """Do what ``%sddb line`` says, with `cell` as the body of ``%%sddb``.

    Parameters
    ----------
    line, cell : str
        As IPython hands them over.
    names : mapping, optional
        The user's namespace.
    connections : Connections
        Those of the session.
    options : Options
        What is meant where the line says nothing.
    scope : dict, optional
        Where a cell that defines something defines it: the user's namespace itself.

    Raises
    ------
    SuperduperError
        Anything is wrong with line, body or cluster.
    """
    parsed = split(line)
    if _is_bare(parsed.words, cell):
        parsed = replace(parsed, words=("mongosh", *parsed.words))
    if not parsed.words or parsed.words[0] in ("help", "-h", "--help"):
        return Outcome(Note(overview()))
    command = _command(parsed.words[0])
    try:
        args = command.parser.read(parsed.words[1:])
    except HelpShown as help:
        return Outcome(Note(str(help)))
    cell = _body(command, getattr(args, "file", None), cell)
    call = Call(args, connections, names or {}, cell, options, scope)
    with one_line(command.name), _allowed(getattr(args, "allowed", None)):
        value = command.run(call)
    bindings = dict(call.bindings)
    bindings |= {name: value for name in (args.output, parsed.variable) if name}
    return Outcome(value, bindings, quiet=parsed.quiet or call.quiet or bool(parsed.variable))


def _allowed(seconds: float | None) -> AbstractContextManager[None]:
    """Limit the time of what is asked of MongoDB and of the notebook server."""
    if seconds is None:
        return nullcontext()
    import pymongo

    return pymongo.timeout(seconds)


def _is_bare(words: tuple[str, ...], cell: str | None) -> bool:
    """Tell whether there is a body, and no sub-command that it is for."""
    if cell is None or not cell.strip():
        return False
    return not words or (words[0].startswith("-") and words[0] not in ("-h", "--help"))


def _command(name: str) -> Command:
    if name in COMMANDS:
        return COMMANDS[name]
    raise InvalidInputError(f"%sddb has no sub-command {name[:40]!r}.{did_you_mean(name, COMMANDS)} See %sddb --help.")


def _body(command: Command, file: str | None, cell: str | None) -> str | None:
    """Return the body: what stands below the line, or in the file that ``--file`` names."""
    given = cell is not None and bool(cell.strip())
    if command.body == "no" and given:
        raise InvalidInputError(
            f"{command.name} takes no body: write %sddb {command.name}, with one %, in a cell with other code."
        )
    if file is not None:
        if given:
            raise InvalidInputError(f"{command.name} takes one body: below the line, or by --file.")
        return _text_of(file)
    if command.body == "must" and not given:
        raise InvalidInputError(
            f"{command.name} needs a body: write %%sddb {command.name}, with two %, and the body below."
        )
    return cell


def _text_of(file: str) -> str:
    try:
        return Path(file).expanduser().read_text("utf-8")
    except OSError as error:
        raise InvalidInputError(f"--file {shorten(file, 80)!r} can't be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise InvalidInputError(f"--file {shorten(file, 80)!r} is no text in UTF-8.") from None


def overview() -> str:
    """Return the list of sub-commands."""
    width = max(map(len, COMMANDS))
    lines = []
    for topic, modules in _TOPICS.items():
        commands = (command for module in modules for command in module.COMMANDS)
        lines += ["", topic, *(f"  {command.name:<{width}}  {command.summary}" for command in commands)]
    return "\n".join([_BEGINNING, *lines, "", _ENDING])


_BEGINNING: Final = """%sddb SUB-COMMAND …, or %%sddb SUB-COMMAND … with a body below. To begin with:

  %sddb connect
  %sddb use shop.products --as docs

  %%sddb find -n 6 -o hits
  {"price": {"$lt": 50}, "$like": {"text": "something warm"}}"""

_ENDING: Final = """%sddb SUB-COMMAND --help (or %sddb SUB-COMMAND?) tells more. Everywhere: --on NAME names the
connection, -o VARIABLE binds the result and shows it, VARIABLE << SUB-COMMAND … binds only, a closing ;
shows nothing."""
