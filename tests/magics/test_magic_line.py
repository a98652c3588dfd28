from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superduper_nb.errors import InvalidInputError, SuperduperError
from superduper_nb.magics.line import check_variable, split
from superduper_nb.magics.session import Connections
from superduper_nb.magics.table import COMMANDS, overview, run


def test_a_line_splits_as_in_a_shell() -> None:
    line = split(""" find --sort '-price' --fields "a b" """)
    assert line.words == ("find", "--sort", "-price", "--fields", "a b")
    assert not line.quiet


def test_nothing_in_a_line_is_expanded() -> None:
    assert split("find {1+1} $HOME ${x} `ls` *").words == ("find", "{1+1}", "$HOME", "${x}", "`ls`", "*")


def test_binding_and_semicolon() -> None:
    assert split("hits << find -n 3").variable == "hits"
    assert split("hits <<").words == ()
    line = split("status;")
    assert (line.words, line.quiet) == (("status",), True)


@pytest.mark.parametrize(
    "name", ["class", "__builtins__", "__x", "print", "a.b", "1a", "a b", "", "a\nb", "get_ipython"]
)
def test_names_that_a_result_must_not_take(name: str) -> None:
    with pytest.raises(InvalidInputError, match="can't be named"):
        check_variable(name)


@given(st.text(max_size=80))
@settings(deadline=None)
def test_any_line_is_a_result_or_one_error_of_ours(line: str) -> None:
    connections = Connections()
    words = line.split()
    if any(word in COMMANDS for word in words):  # those would connect
        return
    try:
        told = ""
        run(line, connections=connections)
    except SuperduperError as error:
        told = str(error)
    assert "\n" not in told
    assert len(told) < 500


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("conect", "Did you mean 'connect'"),
        ("find --nope", "unrecognized arguments: --nope"),
        ("find --exat", r"Did you mean '--exact'\?"),
        ("find 'open", "no closing quotation"),
        ("find -n x", "'x' is no whole number"),
        ("find -n -3", "whole number|expected one argument"),
        ("find --as csv", "invalid choice: 'csv'"),
        ("find -o class", "can't be named 'class'"),
        ("find -o a.b", "can't be named 'a.b'"),
        ("class << find", "can't be named 'class'"),
        ("use a.b --as __builtins__", "can't be named"),
        ("use a.", "database.collection"),
        ("use", "required: DATABASE.COLLECTION"),
        ("connect --name 'a b'", "connection can't be named"),
        ("find --min-score high", "invalid float"),
        ("jobs flying", "invalid choice"),
        ("jobs -n 0", "from 1 on"),
        ("find \x00", "control characters"),
        ("find a\x1b[2Jb", "control characters"),
        ("find " + "x" * 1_000_000, "1,000,005 characters"),
        ("update", r"needs a body: write %%sddb update"),
        ("predict m", "a text on the line, or a value in the body"),
        ("find warm", "'?warm.*stands in the body, below the line"),
        ("status warm", r"arguments: warm\. See %sddb status --help"),
        ("find --file nowhere.json", "'nowhere.json' can't be read: No such file"),
    ],
)
def test_a_wrong_line_is_one_error_in_one_line(line: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        run(line, connections=Connections())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_body_below_a_command_without_one_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="takes no body"):
        run("status", "{}", connections=Connections())


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_helps(name: str) -> None:
    text = repr(run(f"{name} --help", connections=Connections()).value)
    assert text.startswith(f"usage: %sddb {name} ")
    assert COMMANDS[name].summary in text
    assert "-o VARIABLE" in text
    assert "--on NAME" in text
    assert name in overview()


def test_the_overview_is_what_a_bare_line_shows() -> None:
    assert repr(run("", connections=Connections()).value) == overview() == repr(run("--help").value)
