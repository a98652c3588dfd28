from __future__ import annotations

import subprocess
import sys
import time

import psutil

from superduper_nb.cluster.ending import wait_for_end
from tests.waiting import until


def test_those_that_have_not_ended_are_returned_and_ended_ones_that_nobody_collected_are_not() -> None:
    quick, lasting = (subprocess.Popen([sys.executable, "-c", code]) for code in ("", "import time; time.sleep(600)"))
    processes = [psutil.Process(child.pid) for child in (quick, lasting)]
    try:
        until(lambda: processes[0].status() == psutil.STATUS_ZOMBIE, "the first has ended")
        assert wait_for_end(processes, timeout=0.05) == [processes[1]]
        lasting.kill()
        began = time.monotonic()
        assert wait_for_end(processes, timeout=600) == []
        assert time.monotonic() - began < 300  # what is not collected is not waited for
    finally:
        for child in (quick, lasting):
            child.kill()
            child.wait()
    assert wait_for_end(processes, timeout=600) == []
