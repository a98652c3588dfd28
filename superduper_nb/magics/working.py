"""``jobs``, ``watch``, ``wait``, ``cancel``, ``retry`` and ``logs``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from superduper_nb.errors import Interrupted
from superduper_nb.magics.call import Call
from superduper_nb.magics.command import Command
from superduper_nb.magics.connecting import live_option
from superduper_nb.magics.line import Parser
from superduper_nb.widgets.jobs import JobTable
from superduper_nb.widgets.listing import Note
from superduper_nb.widgets.live import Live
from superduper_nb.widgets.progress import JobsView

if TYPE_CHECKING:
    from superduper_nb.client import Job
    from superduper_nb.client.jobs import JobList

__all__ = ["COMMANDS", "cancel", "follow", "jobs", "logs", "retry", "wait", "watch"]

STATES: Final = ("pending", "running", "succeeded", "failed", "cancelled", "blocked")
LAST_PICTURE_S: Final = 3.0


def jobs(call: Call) -> JobTable | Live:
    """List jobs, the newest first; ``--live`` keeps the list as it is now."""
    recorded, target, state = _recorded(call), call.target, call.args.state
    where = f"{target} has no {state or ''} job".replace("  ", " ")

    def look() -> JobTable:
        found = recorded.list(state, limit=call.args.n)
        return JobTable((job.record for job in found), heading=f"jobs of {target}", empty=where)

    return Live(look, "jobs") if call.args.live else look()


def wait(call: Call) -> None:
    """Wait for jobs with their progress in sight; interrupting stops the waiting, not the jobs."""
    chosen = _chosen(call) if call.args.ids else _active(call)
    if not chosen:
        print("no job is pending or running")
        return
    follow(chosen, call.args.timeout)


def follow(chosen: Sequence[Job], timeout: float | None = None) -> None:
    """Show the progress of jobs until they have ended; raise as `Job.wait` does."""
    deadline = None if timeout is None else time.monotonic() + timeout
    view = JobsView(chosen)
    try:
        view.show()
        for job in chosen:
            job.wait(None if deadline is None else max(deadline - time.monotonic(), 0.0))
    except Interrupted:
        raise
    except KeyboardInterrupt as error:  # what waits is in sight before the waiting begins
        raise Interrupted.waiting_for(chosen[0].id) from error
    view.ended.wait(LAST_PICTURE_S)


def watch(call: Call) -> None:
    """Print a job's progress and what it prints, until it ends; interrupting stops the printing, not the job."""
    chosen = _chosen(call) if call.args.ids else _active(call)[:1] or _recorded(call).list(limit=1)
    if not chosen:
        print(f"{call.target} has no job")
        return
    call.database.watch_job(chosen[0].id)


def _active(call: Call) -> list[Job]:
    """Return the unfinished jobs in the order in which they run."""
    recorded = _recorded(call)
    return [*reversed(recorded.list("running")), *reversed(recorded.list("pending"))]


def cancel(call: Call) -> Note:
    """Cancel jobs; what they have written stays."""
    return _each(_chosen(call), "cancel", "cancelled")


def retry(call: Call) -> Note:
    """Queue jobs again."""
    return _each(_chosen(call), "retry", "queued again")


def _each(chosen: Sequence[Job], method: str, done: str) -> Note:
    for job in chosen:
        getattr(job, method)()
    return Note("\n".join(f"{job.name} ({job.id}): {done}" for job in chosen))


def logs(call: Call) -> Note:
    """Show what a job printed: the one that is named, else the newest."""
    chosen = _chosen(call) if call.args.ids else _recorded(call).list(limit=1)
    if not chosen:
        return Note(f"{call.target} has no job")
    job = chosen[0]
    lines = [str(entry.get("text", "")) for entry in job.logs(call.args.since)]
    return Note("\n".join(lines) or f"{job.name} ({job.id}) printed nothing")


def _recorded(call: Call) -> JobList:
    return call.collection.jobs if call.target.collection else call.database.jobs


def _chosen(call: Call) -> list[Job]:
    recorded = call.database.jobs
    return [recorded[id] for id in call.args.ids]


def _jobs_options(parser: Parser) -> None:
    parser.add_argument("state", nargs="?", choices=STATES, help="only those in this state")
    parser.add_argument("-n", type=_positive, default=20, metavar="N", help="how many (default 20)")
    live_option(parser)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _wait_options(parser: Parser) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID", help="which jobs; default: all that are pending or running")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="how long at most; the jobs go on")


def _watch_options(parser: Parser) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID", help="which job; default: the running one, else the newest")


def _ids_options(parser: Parser) -> None:
    parser.add_argument("ids", nargs="+", metavar="ID", help="which jobs (%%sddb jobs shows them)")


def _logs_options(parser: Parser) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID", help="which job; default: the newest")
    parser.add_argument("--since", type=int, default=0, metavar="LINE", help="from this line on")


COMMANDS: Final = (
    Command(
        "jobs",
        jobs,
        "list jobs",
        _jobs_options,
        target=True,
        twins=("docs.jobs.list()",),
    ),
    Command(
        "wait",
        wait,
        "wait for jobs, with progress",
        _wait_options,
        target=True,
        twins=("docs.jobs[id].wait()",),
    ),
    Command(
        "watch",
        watch,
        "follow what a job prints",
        _watch_options,
        target=True,
        twins=("docs.watch_job(id)",),
    ),
    Command(
        "cancel",
        cancel,
        "cancel jobs",
        _ids_options,
        target=True,
        twins=("docs.jobs[id].cancel()",),
    ),
    Command(
        "retry",
        retry,
        "queue jobs again",
        _ids_options,
        target=True,
        twins=("docs.jobs[id].retry()",),
    ),
    Command(
        "logs",
        logs,
        "show what a job printed",
        _logs_options,
        target=True,
        twins=("docs.jobs[id].logs()",),
    ),
)
