"""How a notebook shows what the client returns: jobs with live progress, writes with the jobs that follow from them.

The client knows nothing of this. ``%load_ext`` registers these functions with IPython, by the names of the classes, so
that nothing is imported for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from superduper_nb.widgets.jobs import JobTable
from superduper_nb.widgets.listing import Note
from superduper_nb.widgets.progress import JobsView
from superduper_nb.widgets.results import Facts, Result

__all__ = ["BUNDLES", "DISPLAYS", "cursor_bundle", "job_list_bundle", "sentence", "show_jobs", "write_bundle"]

_SHOWN: Final = 20
_TAILABLE: Final = 2
"""The flag of pymongo's cursors that wait for documents to come."""


def show_jobs(jobs: Any) -> None:
    """Display a job, or a mapping of jobs, with live progress."""
    from IPython.display import display

    followed = list(jobs.values()) if isinstance(jobs, Mapping) else [jobs]
    if followed:
        JobsView(followed).show()
    else:
        show: Any = display  # untyped in IPython
        show(Note("no jobs: nothing has to run"))


def cursor_bundle(cursor: Any) -> dict[str, str] | None:
    """Return the first documents of a query as a table, as mongosh does; the cursor itself stays where it is."""
    if cursor._query_flags & _TAILABLE:
        return None
    look: Any = cursor.clone()
    known: dict[str, Any] = {}
    if look._search is None:
        look.limit(min(abs(look._limit) or _SHOWN + 1, _SHOWN + 1))
    documents = list(look)
    if (reply := look.reply) is not None:
        known = {name: getattr(reply, name) for name in ("index", "strategy", "candidates", "pending")}
    more = reply is None and len(documents) > _SHOWN
    facts = Facts(source=cursor.collection.full_name, more=more, **known)
    return Result(documents[:_SHOWN] if more else documents, facts=facts)._repr_mimebundle_()


def write_bundle(result: Any) -> dict[str, str]:
    """Return a write result as a sentence; the progress of its jobs is displayed before it."""
    if jobs := list(result.jobs.values()):
        JobsView(jobs).show()
    return Note(sentence(result))._repr_mimebundle_()


def job_list_bundle(jobs: Any) -> dict[str, str]:
    """Return the newest jobs as a table."""
    return JobTable((job.record for job in jobs.list(limit=20)), heading="the newest jobs")._repr_mimebundle_()


def sentence(result: Any) -> str:
    """Say what a write result did."""
    if not result.acknowledged:
        return "written, and not acknowledged"
    counted = [f"{number:,} {word}" for word, number in _counts(result) if number]
    return ", ".join(counted) or "nothing changed"


def _counts(result: Any) -> list[tuple[str, int]]:
    if (ids := getattr(result, "inserted_ids", None)) is not None:
        return [(f"document{'' if len(ids) == 1 else 's'} inserted", len(ids))]
    if hasattr(result, "inserted_id"):
        return [("document inserted", 1)]
    words = {"inserted_count": "inserted", "matched_count": "matched", "modified_count": "modified"}
    words |= {"deleted_count": "deleted", "upserted_count": "upserted"}
    return [(word, getattr(result, name, 0)) for name, word in words.items()]


DISPLAYS: Final = {
    ("superduper_nb.client.jobs", "Job"): show_jobs,
    ("superduper_nb.client.jobs", "Jobs"): show_jobs,
}
"""Functions that display by themselves."""

BUNDLES: Final = {
    ("superduper_nb.client.cursor", "Cursor"): cursor_bundle,
    ("superduper_nb.client.jobs", "JobList"): job_list_bundle,
    ("superduper_nb.client.results", "BulkWriteResult"): write_bundle,
    ("superduper_nb.client.results", "DeleteResult"): write_bundle,
    ("superduper_nb.client.results", "InsertManyResult"): write_bundle,
    ("superduper_nb.client.results", "InsertOneResult"): write_bundle,
    ("superduper_nb.client.results", "UpdateResult"): write_bundle,
}
"""Functions that return what to display."""
