from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from superduper_nb.config import Config as Settings
from superduper_nb.errors import InvalidInputError, SuperduperError
from superduper_nb.magics import magic
from superduper_nb.magics.session import CONNECTIONS
from superduper_nb.magics.table import run


@pytest.fixture
def shell(home: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    """Return IPython with the extension loaded."""
    monkeypatch.setenv("IPYTHONDIR", str(home))
    made = InteractiveShell()
    made.history_manager.enabled = False
    made.run_line_magic("load_ext", "superduper_nb")
    yield made
    made.run_line_magic("unload_ext", "superduper_nb")
    made.history_manager.end_session()


@pytest.fixture
def connected(shell: Any, connections: Any, monkeypatch: pytest.MonkeyPatch) -> InteractiveShell:
    """Return that shell, its magic connected to the test's database."""

    def with_connections(line: str, cell: str | None = None, **options: Any) -> Any:
        return run(line, cell, connections=connections, **options)

    monkeypatch.setattr(magic, "run", with_connections)
    return shell


def test_the_session_of_the_design(connected: Any, docs: Any) -> None:
    assert connected.run_cell(f"%sddb use {docs.full_name} --as docs").success
    assert connected.user_ns["docs"] == docs
    cell = '%%sddb find -n 3 -o hits\n{"price": {"$lt": top}, "$like": {"text": "something of wool"}}'
    connected.user_ns["top"] = 100
    result = connected.run_cell(cell)
    assert result.success
    assert result.result is connected.user_ns["hits"]
    assert connected.run_cell("assert len(hits) == 3 and hits[0]['_score'] > 0 and len(hits.to_pandas()) == 3").success
    assert connected.run_cell('assert len(docs.predict("words", "a red scarf")) == 64').success


def test_a_cursor_shows_its_first_documents_and_stays_where_it_is(connected: Any, docs: Any) -> None:
    def shown(cursor: Any) -> str:
        text: str = connected.display_formatter.format(cursor)[0]["text/plain"]
        return text

    cursor = docs.find().sort("price")
    assert shown(cursor).splitlines()[-1] == f"6 documents · {docs.full_name}"
    assert "<table" in connected.display_formatter.format(cursor)[0]["text/html"]
    assert len(list(cursor)) == 6
    assert "6 documents" in shown(cursor)
    assert "2 documents · index meaning (exact" in shown(docs.find(like={"text": "wool hat"}, n=2))
    assert "3 documents · " in shown(docs.find().limit(-3))
    docs.database["many"].insert_many({"n": n} for n in range(30))
    assert "20 documents, more match" in shown(docs.database["many"].find())


def test_line_magics_give_values_and_work_in_functions(connected: Any, docs: Any) -> None:
    connected.run_cell(f"%sddb use {docs.full_name}")
    assert connected.run_cell("n = %sddb count").success
    assert connected.user_ns["n"] == 6
    code = "def f(limit):\n    get_ipython().run_cell_magic('sddb', 'm << count', '{}')\n    return m\nresult = f(1)"
    assert connected.run_cell(code).success
    assert connected.user_ns["result"] == 6


def test_what_is_bound_only_is_not_shown(connected: Any, docs: Any) -> None:
    connected.run_cell(f"%sddb use {docs.full_name}")
    for cell in ("%%sddb hits << find\n{}", "%%sddb find -o hits\n{};", "%sddb find -o hits;"):
        connected.user_ns.pop("hits", None)
        assert connected.run_cell(cell).result is None
        assert len(connected.user_ns["hits"]) == 6


def test_nothing_in_a_line_is_expanded(connected: Any) -> None:
    connected.user_ns["canary"] = []
    result = connected.run_cell("%sddb find --in {canary.append(1)} $canary")
    assert isinstance(result.error_in_exec, InvalidInputError)
    assert connected.user_ns["canary"] == []


def test_a_body_does_not_write_to_the_namespace(connected: Any, docs: Any) -> None:
    connected.run_cell(f"%sddb use {docs.full_name}")
    assert connected.run_cell('%%sddb count -o n\n{"price": {"$lt": (walrus := 20)}}').success
    assert "walrus" not in connected.user_ns


def test_errors_are_one_line_and_can_be_long(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    result = shell.run_cell("%sddb find --nope")
    assert isinstance(result.error_in_exec, InvalidInputError)
    told = capsys.readouterr()
    assert told.out.strip().count("\n") == 0
    assert told.out.startswith("InvalidInputError: %sddb find: unrecognized arguments: --nope.")
    assert told.err == ""
    shell.run_cell("%config SuperduperMagics.short_errors = False")
    shell.run_cell("%sddb find --nope")
    assert "Traceback" in capsys.readouterr().out
    shell.run_cell("%config SuperduperMagics.short_errors = True")
    assert SuperduperError.short


def test_the_display_limit_bounds_what_is_shown(connected: Any, docs: Any) -> None:
    connected.run_cell(f"%sddb use {docs.full_name}")
    connected.run_cell("%config SuperduperMagics.display_limit = 2")
    result = connected.run_cell("%sddb find").result
    assert "2 shown of 6 documents" in repr(result)
    assert len(result) == 6


def test_the_fetch_limit_is_what_is_read_without_n(connected: Any, docs: Any) -> None:
    connected.run_cell(f"%sddb use {docs.full_name}")
    connected.run_cell("%config SuperduperMagics.fetch_limit = 4")
    assert "4 of 6 documents" in repr(connected.run_cell("%sddb find").result)
    assert len(connected.run_cell("%%sddb\ndb.products.find({})").result) == 4
    assert len(connected.run_cell("%sddb find -n 5").result) == 5


@pytest.mark.parametrize(
    ("project", "user", "limit", "warning"),
    [
        ("", 30, 30, ""),
        ("[tool.superduper_nb]\ndisplay_limit = 7\nfetch_limit = 100", 30, 7, ""),
        ("[tool.superduper_nb]\ndisplay_limt = 7", 30, 30, "display_limt: unknown key. Did you mean 'display_limit'?"),
        ("[tool.superduper_nb]\ndisplay_limit = 'x'", 30, 30, "display_limit: The 'display_limit' trait of a"),
        ("[tool.superduper_nb]\ndisplay_limit = 51", 30, 30, "display_limit: The value of the 'display_limit' trait"),
        ("[tool.superduper_nb]\ndisplay_limit 7", 30, 30, "not TOML: "),
        ("[tool.other]\nbroken = = 1", 30, 30, ""),
    ],
)
def test_options_come_from_the_project_else_from_the_user(
    home: Any, monkeypatch: pytest.MonkeyPatch, project: str, user: int, limit: int, warning: str
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(home))
    (home / "pyproject.toml").write_text(project)
    (home / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(home / "deep" / "er")
    config = Config({"SuperduperMagics": {"display_limit": user}, "HistoryManager": {"enabled": False}})
    shell: Any = InteractiveShell(config=config)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        shell.run_line_magic("load_ext", "superduper_nb")
    magics = shell.magics_manager.registry["SuperduperMagics"]
    assert magics.display_limit == limit
    assert len(told) == bool(warning)
    assert all(warning in str(each.message) and "pyproject.toml: " in str(each.message) for each in told)
    shell.run_line_magic("unload_ext", "superduper_nb")


@pytest.mark.parametrize(
    ("variable", "text", "limit", "warning"),
    [
        ("SUPERDUPER_MAGICS__DISPLAY_LIMIT", "9", 9, ""),
        ("SUPERDUPER_MAGICS__DISPLAY_LIMIT", "", 7, ""),
        ("SUPERDUPER_MAGICS__DISPLAY_LIMIT", "many", 7, "SUPERDUPER_MAGICS__DISPLAY_LIMIT='many': "),
        ("SUPERDUPER_MAGICS__DISPLAY_LIMIT", "51", 7, "SUPERDUPER_MAGICS__DISPLAY_LIMIT: display_limit: The value"),
        ("SUPERDUPER_MAGICS__DISPLAY_LIMT", "9", 7, "unknown key. Did you mean 'display_limit'?"),
    ],
)
def test_options_of_the_environment_count_more_than_those_of_the_project(
    home: Any, monkeypatch: pytest.MonkeyPatch, variable: str, text: str, limit: int, warning: str
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(home))
    monkeypatch.setenv(variable, text)
    monkeypatch.setenv("SUPERDUPER_MAGICS__SHORT_ERRORS", "false")
    (home / "pyproject.toml").write_text("[tool.superduper_nb]\ndisplay_limit = 7")
    monkeypatch.chdir(home)
    shell: Any = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        shell.run_line_magic("load_ext", "superduper_nb")
    magics = shell.magics_manager.registry["SuperduperMagics"]
    assert magics.display_limit == limit
    assert magics.short_errors is bool(warning)
    assert [warning in str(each.message) for each in told] == [True] * bool(warning)
    assert Settings.load().valid_fraction == 0.05
    shell.run_line_magic("unload_ext", "superduper_nb")


def test_help_is_where_ipython_looks_for_it(shell: Any) -> None:
    assert "find documents, by filter and by meaning" in shell.object_inspect_text("%sddb")
    assert "usage: %sddb use" in repr(shell.run_cell("%sddb use --help").result)
    for question in ("%sddb use?", "%%sddb use ?", "\n%sddb use??\n"):
        assert "usage: %sddb use" in repr(shell.run_cell(question).result)
    assert shell.run_cell("x = 3\nx").result == 3


def test_loading_is_silent_and_leaves_no_trace(home: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from superduper_nb import load_ipython_extension, unload_ipython_extension

    monkeypatch.setenv("IPYTHONDIR", str(home))
    shell: Any = InteractiveShell()

    def state() -> tuple[Any, ...]:
        formatters = shell.display_formatter
        return (
            sorted(shell.magics_manager.magics["line"]),
            sorted(shell.magics_manager.magics["cell"]),
            len(shell.configurables),
            len(shell.Completer.custom_matchers),
            len(shell.input_transformers_cleanup),
            len(formatters.mimebundle_formatter.deferred_printers),
            len(formatters.ipython_display_formatter.deferred_printers),
            sorted(shell.events.callbacks["pre_run_cell"], key=repr),
        )

    before = state()
    for _ in range(2):
        load_ipython_extension(shell)
        load_ipython_extension(shell)
        assert shell.find_line_magic("sddb") is not None
        assert shell.find_cell_magic("sddb") is not None
        assert len(shell.configurables) == before[2] + 1
        unload_ipython_extension(shell)
        unload_ipython_extension(shell)
        assert state() == before
    shell.history_manager.end_session()
    assert capsys.readouterr() == ("", "")


def test_connections_survive_a_reload(shell: Any, client: Any) -> None:
    CONNECTIONS.open("survivor", {}, connect=lambda **_: client)
    try:
        assert shell.run_cell("%reload_ext superduper_nb").success
        listed = shell.run_cell("%sddb connections").result
        assert "survivor" in [row["name"] for row in listed]
    finally:
        CONNECTIONS.close("survivor")


def test_loading_imports_nothing_heavy() -> None:
    code = (
        "import sys; from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell(); shell.history_manager.enabled = False; before = set(sys.modules)\n"
        "shell.run_line_magic('load_ext', 'superduper_nb')\n"
        "heavy = 'pymongo bson numpy torch pandas PIL lark jinja2 ipywidgets dask distributed jupyter_server'.split()\n"
        "print(sorted(name for name in heavy if name in sys.modules and name not in before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"


def test_write_results_and_jobs_are_displayed(connected: Any, docs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    connected.user_ns["docs"] = docs
    connected.run_cell('docs.insert_many([{"text": "x"}, {"text": "y"}])')
    out = capsys.readouterr().out
    assert "✓ succeeded  words/text  2/2" in out
    assert "2 documents inserted" in out
    connected.run_cell("docs.jobs")
    assert "succeeded" in capsys.readouterr().out
    connected.run_cell('docs.insert_one({"text": "z"}).jobs')
    assert "✓ succeeded  words/text  1/1" in capsys.readouterr().out


def test_plain_pymongo_results_are_left_alone(connected: Any, database: Any) -> None:
    result = database["plain"].insert_one({"_id": 1})
    assert "text/html" not in connected.display_formatter.format(result)[0]
    assert connected.display_formatter.format(result)[0]["text/plain"] == repr(result)
