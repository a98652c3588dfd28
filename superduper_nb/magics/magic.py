"""The magic itself: IPython's side of :mod:`~superduper_nb.magics.table`."""

from __future__ import annotations

from typing import Any

from IPython.core.magic import Magics, line_cell_magic, magics_class, needs_local_scope, no_var_expand
from traitlets import Bool, Int, observe

from superduper_nb.errors import SuperduperError
from superduper_nb.magics.call import FETCHED, Options
from superduper_nb.magics.table import overview, run
from superduper_nb.widgets.results import MOST_ROWS

__all__ = ["SuperduperMagics"]


@magics_class
class SuperduperMagics(Magics):
    """``%sddb`` and ``%%sddb``, and their options: ``%config SuperduperMagics`` shows them."""

    short_errors = Bool(True, help="Show this package's errors as one line; False: with their traceback.").tag(
        config=True
    )
    display_limit = Int(
        MOST_ROWS, min=1, max=MOST_ROWS, help="Most rows of a result to show; programs get every document."
    ).tag(config=True)
    fetch_limit = Int(FETCHED, min=1, help="Documents that find and aggregate get where no -n says how many.").tag(
        config=True
    )

    @observe("short_errors")
    def _shorten_errors(self, change: Any) -> None:
        SuperduperError.short = change["new"]

    @no_var_expand
    @needs_local_scope
    @line_cell_magic
    def sddb(self, line: str, cell: str | None = None, local_ns: dict[str, Any] | None = None) -> Any:  # noqa: D102
        shell: Any = self.shell
        names = {**shell.user_ns, **(local_ns or {})}
        options = Options(self.display_limit, self.fetch_limit)
        outcome = run(line, cell, names=names, options=options, scope=shell.user_ns)
        if outcome.bindings:
            shell.push(outcome.bindings)
        return None if outcome.quiet else outcome.value

    sddb.__doc__ = overview()
