from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from superduper_nb.widgets import progress
from superduper_nb.widgets.display import show_jobs, write_bundle
from superduper_nb.widgets.jobs import JobState, finished, job_row, jobs_html, jobs_text, snapshot
from superduper_nb.widgets.panel import panel
from superduper_nb.widgets.progress import JobsView
from tests.widgets.payloads import foreign_parts


class FakeJob:
    """A job whose record goes through given states, one at each look, and stays in the last."""

    def __init__(self, *states: str, name: str = "words/text", total: int | None = 100) -> None:
        self._states, self.name, self.total, self.looks = list(states), name, total, 0
        self.asked: list[str] = []
        self.workers, self.printed = 2, list[str]()

    def logs(self, since: int = 0) -> list[dict[str, Any]]:
        return [{"n": n, "text": text} for n, text in enumerate(self.printed)][since:]

    def cancel(self) -> None:
        self.asked.append("cancel")
        self._states, self.looks = ["cancelled"], 0

    def retry(self) -> None:
        self.asked.append("retry")
        self._states, self.looks = ["running"] * 3 + ["succeeded"], 0

    @property
    def record(self) -> dict[str, Any]:
        state = self._states[min(self.looks, len(self._states) - 1)]
        self.looks += 1
        done = (self.total or 0) if state == "succeeded" else min(self.looks, self.total or 0)
        error = {"type": "ModelError", "message": "no"} if state == "failed" else None
        progress = {"done": done, "total": self.total, "failed": 0}
        logged = len(self.printed)
        return {"_id": "j1", "name": self.name, "state": state, "progress": progress, "error": error, "logged": logged}


class Unreadable(FakeJob):
    @property
    def record(self) -> dict[str, Any]:
        self.looks += 1
        if self.looks > 1:
            raise OSError("gone")
        return super().record


class Screen:
    """Stands for a notebook: what was displayed, and each later picture of it."""

    def __init__(self) -> None:
        self.pictures: list[dict[str, Any]] = []

    def display(self, bundle: dict[str, Any]) -> Screen:
        self.pictures.append(bundle)
        return self

    def update(self, bundle: dict[str, Any], *, raw: bool) -> None:
        assert raw
        self.pictures.append(bundle)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    made = Screen()
    monkeypatch.setattr(progress, "_display", made.display)
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    return made


@pytest.fixture
def no_widget_is_left() -> Iterator[None]:
    from ipywidgets.widgets.widget import _instances

    before = set(_instances)
    yield
    assert set(_instances) <= before


VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.mark.usefixtures("no_widget_is_left")
def test_a_slow_job_is_followed_by_one_widget_and_ends_as_static_output(screen: Screen) -> None:
    from ipywidgets.widgets.widget import _instances

    before = len(_instances)
    view = JobsView([FakeJob(*["running"] * 6, "succeeded")], delay=0.0, interval=0.01)
    view.show()
    assert len(_instances) - before <= 8  # an HTML and a button in a box, with their layouts and styles
    assert view.ended.wait(20)
    first, last = screen.pictures
    assert VIEW in first
    assert "◐ running" in first["text/plain"]
    assert set(last) == {"text/plain", "text/html"}
    assert "✓ succeeded" in last["text/plain"]
    assert "100/100" in last["text/html"]


@pytest.mark.usefixtures("no_widget_is_left")
def test_a_quick_job_gets_its_final_picture_only(screen: Screen) -> None:
    view = JobsView([FakeJob("pending", "succeeded")], delay=20.0)
    view.show()
    assert view.ended.is_set()
    (only,) = screen.pictures
    assert set(only) == {"text/plain", "text/html"}
    assert "succeeded" in only["text/plain"]


def test_the_widget_moves_by_its_trait(screen: Screen) -> None:
    job = FakeJob(*["running"] * 50, "succeeded")
    view = JobsView([job], delay=0.0, interval=0.01)
    view.show()
    seen: set[str] = set()
    widget = view._panel._html
    widget.observe(lambda change: seen.add(change["new"]), names="value")
    assert view.ended.wait(20)
    assert len(seen) > 3
    assert all(foreign_parts(html) == [] for html in seen)


@pytest.mark.usefixtures("no_widget_is_left")
def test_the_view_tells_what_was_printed_last_and_how_many_workers_there_are(screen: Screen) -> None:
    job = FakeJob("running", "running", "running", "succeeded")
    job.printed = ["opening", "loading <b>weights</b>"]
    view = JobsView([job], delay=0, interval=0.01)
    view.show()
    assert view.ended.wait(10)
    first, last = screen.pictures[0], screen.pictures[-1]
    assert "· 2 workers" in first["text/html"] or ">2 workers<" in first["text/html"]
    assert "loading &lt;b&gt;weights&lt;/b&gt;" in first["text/html"]
    assert "opening" not in first["text/html"]
    assert "loading <b>weights</b>" in last["text/plain"]


def test_a_lost_database_is_told_in_the_view_and_ends_it(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 5)
    view = JobsView([Unreadable("running")], delay=0.0, interval=0.01)
    view.show()
    told: list[str] = []
    widget = view._panel._html
    widget.observe(lambda change: told.append(change["new"]), names="value")
    assert view.ended.wait(20)
    assert any("can&#39;t be read at the moment (OSError)" in html for html in told)


def click(view: JobsView, label: str, seconds: float = 20.0) -> None:
    """Click the button of a view, once it says `label`."""
    deadline = time.monotonic() + seconds
    while view._panel is None or view._panel._button.description != label:
        assert time.monotonic() < deadline, view._panel and view._panel._button.description
        time.sleep(0.005)
    view._panel._button.click()


@pytest.mark.usefixtures("no_widget_is_left")
def test_a_job_is_cancelled_by_the_button_and_then_retried_by_it(screen: Screen) -> None:
    job = FakeJob("running")
    view = JobsView([job, FakeJob("succeeded", name="other")], delay=0.0, interval=0.01)
    view.show()
    click(view, "Cancel")
    assert view.ended.wait(20)
    assert "⊘ cancelled" in screen.pictures[-1]["text/plain"]
    assert VIEW in screen.pictures[-1]
    click(view, "Retry")
    while VIEW in screen.pictures[-1]:
        assert not view._stop.wait(0.01) or view.ended.wait(20)
    assert job.asked == ["cancel", "retry"]
    assert "succeeded" in screen.pictures[-1]["text/plain"]
    assert "cancelled" not in screen.pictures[-1]["text/plain"]


@pytest.mark.usefixtures("no_widget_is_left")
def test_the_offer_to_retry_ends_and_the_view_is_static_then(screen: Screen) -> None:
    view = JobsView([FakeJob("running", "running", "failed")], delay=0.0, interval=0.01, offer=0.05)
    view.show()
    assert view.ended.wait(20)
    while VIEW in screen.pictures[-1]:
        time.sleep(0.01)
    assert "✕ failed" in screen.pictures[-1]["text/plain"]


@pytest.mark.usefixtures("no_widget_is_left")
def test_a_click_that_fails_is_told_in_the_view_and_logged(screen: Screen, caplog: pytest.LogCaptureFixture) -> None:
    job = FakeJob("running")
    job.cancel = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    view = JobsView([job], delay=0.0, interval=0.01)
    view.show()
    click(view, "Cancel")
    assert view._panel is not None
    told = "cancel failed: ZeroDivisionError: division by zero"
    while told not in view._panel._html.value:
        assert not view.ended.is_set()
        time.sleep(0.01)
    assert "the cancel button failed" in caplog.text
    assert (view._panel._button.description, view._panel._button.disabled) == ("Cancel", False)
    view.close()


def test_the_button_says_what_it_does() -> None:
    shown = panel("<p></p>", lambda action: None)
    assert shown is not None
    for action, label in (("cancel", "Cancel"), ("retry", "Retry")):
        shown.offer(action)  # type: ignore[arg-type]
        assert shown._button.description == label
        assert shown._button.tooltip
        assert shown._button.layout.display is None
    shown.offer("")
    assert shown._button.layout.display == "none"
    shown.close()


@pytest.mark.usefixtures("no_widget_is_left")
def test_closing_is_harmless_at_any_time(screen: Screen) -> None:
    JobsView([FakeJob("running")]).close()
    view = JobsView([FakeJob("running")], delay=0.0, interval=0.01)
    view.show()
    view.close()
    view.close()
    assert view.ended.is_set()
    empty = JobsView([])
    empty.show()
    assert empty.ended.is_set()


def test_without_a_kernel_it_is_one_text(capsys: pytest.CaptureFixture[str]) -> None:
    show_jobs(FakeJob("running", "failed"))
    assert "✕ failed" in capsys.readouterr().out


def test_without_ipywidgets_the_static_view_is_complete(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    view = JobsView([FakeJob("running", "running", "succeeded")], delay=0.0, interval=0.01)
    view.show()
    assert view.ended.wait(20)
    assert VIEW not in screen.pictures[0]
    assert "succeeded" in screen.pictures[-1]["text/html"]


def test_show_returns_at_once_for_slow_jobs(screen: Screen) -> None:
    view = JobsView([FakeJob("running")], delay=0.05, interval=0.01)
    view.show()
    assert not view.ended.is_set()
    assert view.states[0].state == "running"
    view.close()


def test_text_and_html_tell_the_same() -> None:
    record = {"_id": "1", "name": "m/k", "state": "failed", "progress": {"done": 3, "total": 7, "failed": 2}}
    states = snapshot([{**record, "error": {"type": "ModelError", "message": "bad channel"}}])
    text, html = jobs_text(states, seconds=75), jobs_html(states, seconds=75)
    for word in ("failed", "m/k", "3/7, 2 failed", "01:15", "ModelError: bad channel"):
        assert word in text
        assert word in html
    assert 'max="7" value="3"' in html
    assert '<tr class="sddb-row-bad">' in html
    assert '<tr class="sddb-row-good">' in jobs_html(snapshot([{**record, "state": "succeeded", "progress": {}}]))


def test_documents_that_failed_are_told_with_the_first_of_their_reasons() -> None:
    failures = {"count": 2, "first": [{"_id": 7, "error": "ValueError: no"}, {"_id": 8, "error": "KeyError: 'x'"}]}
    progress = {"done": 5, "total": 5, "failed": 2}
    one = {"_id": "a", "name": "m/text", "state": "succeeded", "progress": progress, "failures": failures}
    states = snapshot([one])
    assert jobs_text(states) == "! succeeded  m/text  5/5, 2 failed  _id 7: ValueError: no  a"
    assert 'class="sddb-state sddb-warn"' in jobs_html(states)
    assert job_row(one)["error"] == "_id 7: ValueError: no"


def test_a_total_that_is_not_known_yet() -> None:
    progress = {"done": 3, "total": None, "failed": 0}
    (state,) = snapshot([{"_id": "1", "name": "n", "state": "running", "progress": progress}])
    assert state.count == "3"
    assert "<progress" not in jobs_html([state])


def test_how_fast_it_goes() -> None:
    progress = {"done": 3, "total": 9, "failed": 0, "rate": 2.4, "eta": 62.0}
    record = {"_id": "1", "name": "n", "state": "running", "progress": progress}
    (state,) = snapshot([record])
    assert state.speed == "2/s, 01:02 left"
    assert state.speed in jobs_text([state])
    assert state.speed in jobs_html([state])
    (slow,) = snapshot([{**record, "progress": {**progress, "rate": 0.5, "eta": None}}])
    assert slow.speed == "30/min"
    assert snapshot([{**record, "state": "succeeded"}])[0].speed == ""


def test_finished() -> None:
    assert finished([])
    assert finished([JobState("1", "a", state) for state in ("succeeded", "failed", "cancelled", "blocked")])
    assert not finished([JobState("1", "a", "succeeded"), JobState("2", "b", "pending")])


def test_many_jobs_stay_small() -> None:
    states = [JobState(str(i), "n" * 80, "running", i, 1000) for i in range(1000)]
    assert "950 more jobs" in jobs_text(states)
    assert len(jobs_html(states)) < 100_000
    assert jobs_text([]) == "no jobs"
    assert "no jobs" in jobs_html([])


def test_write_results_are_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    from superduper_nb.client import results

    def told(result: Any, *jobs: Any) -> str:
        result.jobs = {str(i): job for i, job in enumerate(jobs)}
        return write_bundle(result)["text/plain"]

    assert told(results.InsertManyResult([1, 2, 3], True)) == "3 documents inserted"
    assert told(results.InsertManyResult([1], True)) == "1 document inserted"
    assert told(results.InsertOneResult(1, True)) == "1 document inserted"
    assert told(results.UpdateResult({"n": 5, "nModified": 2}, True)) == "5 matched, 2 modified"
    assert told(results.DeleteResult({"n": 0}, True)) == "nothing changed"
    assert told(results.InsertOneResult(1, False)) == "written, and not acknowledged"
    assert capsys.readouterr().out == ""
    assert told(results.InsertOneResult(1, True), FakeJob("succeeded")) == "1 document inserted"
    assert "✓ succeeded" in capsys.readouterr().out


def test_the_clock_of_a_view_starts_with_it(screen: Screen) -> None:
    began = time.monotonic()
    view = JobsView([FakeJob("succeeded")])
    assert 0 <= view._seconds() <= time.monotonic() - began + 0.001


def test_curves_are_drawn_beside_the_job_and_told_in_words() -> None:
    curves = [
        {"name": "loss", "steps": [1, 2, 3], "values": [4.0, 2.0, 1.0]},
        {"name": "valid.loss", "steps": [0, 3], "values": [5.0, 1.5]},
        {"name": "valid.<b>acc", "steps": [0, 3], "values": [float("nan"), 0.9]},
    ]
    record = {"_id": "j1", "name": "train x", "state": "running", "progress": {}, "note": "loss 1", "curves": curves}
    (state,) = snapshot([record])
    loss, accuracy = state.charts
    assert [line.name for line in loss.lines] == ["loss", "valid.loss"]
    assert loss.label == "loss between 1 and 5; last: loss 1, valid.loss 1.5"
    # Both share one scale: the highest point is valid.loss's first, the lowest loss's last, at the right end.
    assert loss.lines[1].points.split()[0] == "3.0,3.0"
    assert loss.lines[0].points.split()[-1] == "177.0,53.0"
    assert len(accuracy.lines[0].points.split()) == 1
    drawn = jobs_html([state])
    assert drawn.count("<figure>") == 2
    assert "<b>" not in drawn
    assert "loss 1" in jobs_text([state])
