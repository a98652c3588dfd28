from __future__ import annotations

import threading
from typing import Any

import pytest

from superduper_nb.magics.catalog import Catalog
from superduper_nb.magics.completion import Completions
from superduper_nb.magics.session import Connections
from superduper_nb.magics.table import COMMANDS


def offered(line: str, connections: Connections | None = None, cell: str = "") -> list[str]:
    """Complete at the end of `line`, which is the first of a cell, or the last of `cell`."""
    completions = Completions(connections or Connections(), Catalog(patience=5))
    text = f"{cell}\n{line}" if cell else line
    found = completions.find(text, text.count("\n"), line)
    assert found is not None
    return [name for name, _ in found[1]]


def test_sub_commands() -> None:
    assert offered("%sddb ") == sorted(COMMANDS)
    assert offered("%%sddb fi") == ["find", "find_one"]
    assert offered("hits = %sddb co") == ["collections", "config", "connect", "connections", "count"]
    assert offered("%%sddb hits << fi") == ["find", "find_one"]


def test_options_belong_to_their_command() -> None:
    assert "--min-score" in offered("%%sddb find --")
    assert "--min-score" not in offered("%sddb jobs --")
    assert offered("%sddb find --mi") == ["--min-score"]
    assert offered("%sddb find --as ") == ["gallery", "json", "pandas", "table"]
    assert offered("%sddb unknown --") == []
    assert Completions(Connections()).find("", 0, "%sddb find --file ch") is None  # IPython's own matcher knows files


def test_names_come_from_the_connection(docs: Any, sddb: Any, connections: Connections) -> None:
    assert offered("%%sddb find --index ", connections) == ["meaning"]
    assert offered("%%sddb predict w", connections) == ["words"]
    assert offered("%sddb status --on d", connections) == ["default"]
    name = docs.full_name
    assert name in offered(f"%sddb use {name[:8]}", connections)
    assert offered(f"%sddb find --in {name[:-2]}", connections) == [name]
    assert offered("%%sddb find --on default --index m", connections) == ["meaning"]
    docs.database["other"].insert_one({"weight": 3})
    for other, fields in {f"{docs.database.name}.other": ["weight"], name: []}.items():
        assert offered(f"%sddb find --in {other} --sort wei", connections) == fields


def test_without_a_connection_none_is_opened() -> None:
    connections = Connections()
    assert offered("%sddb find --index ", connections) == []
    assert len(connections) == 0


def test_operators_in_the_body() -> None:
    assert offered('{"price": {"$l', cell="%%sddb find") == ["$like", "$lt", "$lte"]
    assert "$lookup" in offered('[{"$lo', cell="%%sddb aggregate")


def test_fields_are_those_of_the_documents(docs: Any, sddb: Any, connections: Connections) -> None:
    docs.insert_one({"size": {"width": 3}})
    assert offered("%sddb distinct te", connections) == ["text"]
    assert offered("%sddb find --sort pr", connections) == ["price"]
    assert offered('{"pr', connections, "%%sddb find") == ["price"]
    assert offered("{color: 5, te", connections, "%%sddb find") == ["text"]
    assert offered('{"size.', connections, "%%sddb") == ["size.width"]
    assert offered("db.products.find({co", connections, "%%sddb") == ["color"]
    assert offered('[{"$group": {"_id": "$col', connections, "%%sddb aggregate") == ["$color"]
    completions = Completions(connections, Catalog(patience=5))
    for text in (
        "%%sddb find\n{size.wi",
        "%%sddb find\n{color: te",
        "%%sddb model m\ndef f(te",
        "%%sddb find\n{nowhere",
    ):
        line = text.split("\n")[-1]
        assert completions.find(text, 1, line) is None


@pytest.mark.parametrize("text", ["x = 1", "%%time\nfi", "print('%sddb ')\n$l", "sddb ", "%%sddb find\nlimit"])
def test_elsewhere_it_keeps_quiet(text: str) -> None:
    line = text.split("\n")[-1]
    assert Completions(Connections()).find(text, text.count("\n"), line) is None


def test_a_slow_answer_is_not_waited_for_and_is_there_the_next_time() -> None:
    catalog, go = Catalog(patience=0.0), threading.Event()
    asked = []

    def ask() -> list[str]:
        asked.append(1)
        go.wait(20)
        return ["a", "b"]

    assert catalog.names(("k",), ask) == ()
    assert catalog.names(("k",), ask) == ()
    go.set()
    catalog._patience = 20.0
    assert catalog.names(("k",), ask) == ("a", "b")
    assert catalog.names(("k",), ask) == ("a", "b")
    assert asked == [1]


def test_an_answer_that_fails_is_no_name() -> None:
    def ask() -> list[str]:
        raise OSError

    assert Catalog(patience=20).names(("k",), ask) == ()


def test_ipython_gets_them(docs: Any) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    from superduper_nb.magics.extension import load, unload

    shell: Any = InteractiveShell()
    load(shell)
    try:
        for jedi in (True, False):
            shell.Completer.use_jedi = jedi
            text = "%%sddb find --min"
            _, found = shell.Completer.complete(text=None, line_buffer=text, cursor_pos=len(text))
            assert found == ["--min-score"]
            text = "%sddb statu"
            _, found = shell.Completer.complete(text=None, line_buffer=text, cursor_pos=len(text))
            assert found == ["status"]
    finally:
        unload(shell)
        shell.history_manager.end_session()


def test_attributes_complete_without_jedi(docs: Any, client: Any) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    from superduper_nb.magics.extension import load, unload

    shell: Any = InteractiveShell()
    load(shell)
    try:
        shell.Completer.use_jedi = False
        shell.user_ns["client"] = client
        text = f'client["{docs.database.name}"]["products"].create_sem'
        _, found = shell.Completer.complete(text=None, line_buffer=text, cursor_pos=len(text))
        assert any("create_semantic_index" in each for each in found)
    finally:
        unload(shell)
        shell.history_manager.end_session()
