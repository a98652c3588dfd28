"""Follow a job in print."""

from __future__ import annotations

import time
from typing import Final

from superduper_nb.client.jobs import Job
from superduper_nb.jobs import FINAL_STATES

__all__ = ["watch"]

_PAUSE_S: Final = 0.2


def watch(job: Job) -> None:
    """Print a job's progress and log lines until it ends; Ctrl-C stops the printing, not the job."""
    shown, line = "", 0
    while True:
        record = job.record
        for entry in job.logs(line):
            print(entry["text"])
            line = entry["n"] + 1
        if (now := repr(job)) != shown:
            print(now, flush=True)
            shown = now
        if record["state"] in FINAL_STATES:
            if job.error:
                print(job.error)
            return
        time.sleep(_PAUSE_S)
