from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superduper_nb.widgets.clean import visible
from superduper_nb.widgets.jobs import JobState, jobs_html, jobs_text
from superduper_nb.widgets.listing import Listing, Note, Values
from superduper_nb.widgets.results import Document, Facts, Result
from superduper_nb.widgets.status import Status
from tests.widgets.payloads import PAYLOADS, foreign_parts, shown_text

HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def _documents(text: str) -> list[dict[str, Any]]:
    return [
        {"_id": text, text: text, "nested": {text: [text, {text: text}]}, "list": [text] * 3, "_score": 0.5},
        {"_id": 2, "long": text + " " * 200 + text, "object": type("Odd", (), {"__repr__": lambda _: text})()},
    ]


VIEWS: dict[str, Callable[[str], Any]] = {
    "table": lambda text: Result(_documents(text), facts=Facts(source=text, index=text, strategy=text)),
    "gallery": lambda text: Result(_documents(text), facts=Facts(source=text), layout="gallery"),
    "plot": lambda text: Result([{"_score": 0.5, "name": text}, {"_score": 0.1, "name": [text]}]).plot("name"),
    "empty": lambda text: Result([], facts=Facts(source=text)),
    "document": lambda text: Document(_documents(text)[0]),
    "listing": lambda text: Listing([{text: text}], heading=text),
    "nothing": lambda text: Listing([], empty=text),
    "values": lambda text: Values([text, {text: text}], name=text),
    "note": Note,
    "status": lambda text: Status(
        {"version": text, "mode": text, "components": {text: {"state": text, "where": text, text: text}, "b": text}},
        connection=text,
        how=text,
    ),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("number", range(len(PAYLOADS)))
def test_hostile_text_stays_text(view: str, number: int) -> None:
    bundle = VIEWS[view](PAYLOADS[number])._repr_mimebundle_()
    _check(bundle["text/plain"], bundle["text/html"])


@given(st.text(st.characters(codec=None), max_size=80))
@settings(deadline=None)
def test_any_text_stays_text(text: str) -> None:
    for make in VIEWS.values():
        bundle = make(text)._repr_mimebundle_()
        _check(bundle["text/plain"], bundle["text/html"])


@pytest.mark.parametrize("payload", PAYLOADS)
def test_jobs_show_hostile_text_as_text(payload: str) -> None:
    record = {"_id": payload, "name": payload, "state": "failed", "error": {"type": payload, "message": payload}}
    from superduper_nb.widgets.jobs import snapshot

    states = [*snapshot([record]), JobState("1", "x", "running", 1, 2)]
    _check(jobs_text(states), jobs_html(states, problem=payload))


def _check(plain: str, html: str) -> None:
    assert foreign_parts(html) == []
    assert not HIDDEN.search(plain)
    assert not HIDDEN.search(html)
    plain.encode()
    html.encode()


def test_what_was_written_is_what_is_read() -> None:
    for payload in PAYLOADS[:30]:
        html = Result([{"a": payload}])._repr_mimebundle_()["text/html"]
        assert visible(payload) in shown_text(html)


def test_math_is_not_typeset() -> None:
    for make in VIEWS.values():
        assert "tex2jax_ignore mathjax_ignore" in make("$x$")._repr_mimebundle_()["text/html"]
