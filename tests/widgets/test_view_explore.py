"""Looking around: the explorer, the map and live views, beside what the client itself finds."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from superduper_nb.errors import InvalidInputError, JobCancelledError, NotFoundError
from superduper_nb.search import plane
from superduper_nb.widgets import html
from superduper_nb.widgets.explore import Explorer
from superduper_nb.widgets.listing import Note
from superduper_nb.widgets.live import Live
from superduper_nb.widgets.map import EmbeddingMap
from tests.magics.conftest import client, docs  # noqa: F401 - fixtures
from tests.widgets.payloads import PAYLOADS, foreign_parts


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pretend that a front-end listens; no widget may be left."""
    monkeypatch.setattr(html, "in_notebook", lambda: True)
    before = set(_alive())
    yield
    assert [type(left).__name__ for id, left in _alive().items() if id not in before] == []


def _alive() -> dict[str, Any]:
    from ipywidgets.widgets import widget

    return dict(widget._instances)


OURS = ("<li [('class', 'sddb-is-", "<button [('type', 'button'), ('data-act', ", "<span [('aria-hidden'")
"""What `foreign_parts` calls foreign, and only templates draw."""


def ids(documents: Any) -> list[Any]:
    return [document["_id"] for document in documents]


def press(explorer: Explorer, act: str, rank: int = 0, **more: Any) -> None:
    explorer._view._handle_custom_msg({"act": act, "rank": str(rank), **more}, [])


def test_every_button_stands_for_a_query(docs: Any, notebook: None) -> None:  # noqa: F811
    explorer = Explorer(docs, like={"text": "wool"}, n=4)
    shown = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in shown
    assert "6 documents" not in shown["text/plain"]
    assert shown["text/plain"].endswith("docs.find({}, like={'text': 'wool'}, n=4)")
    hat, scarf = (docs.find_one({"text": {"$regex": word}})["_id"] for word in ("ear flaps", "scarf"))
    press(explorer, "more", ids(explorer.result).index(hat))
    press(explorer, "less", ids(explorer.result).index(scarf))
    wanted = docs.find({}, like=[{"text": "wool"}, {"_id": hat}], unlike={"_id": scarf}, n=4)
    assert ids(explorer.result) == ids(wanted)
    assert ids(eval(explorer.query, {"docs": docs, "ObjectId": type(hat)})) == ids(explorer.result)
    press(explorer, "narrow", n="2", filter='{"price": {"$lt": 25}}')
    assert len(explorer.result) == 2
    assert all(document["price"] < 25 for document in explorer.result)
    press(explorer, "narrow", n="2", filter='{"price": ')
    assert "the filter is no JSON" in explorer._view.html
    assert explorer.filter == {"price": {"$lt": 25}}
    press(explorer, "forget", 0)
    press(explorer, "reset")
    assert explorer.query == "docs.find({'price': {'$lt': 25}}, like={'text': 'wool'}, n=2)"
    explorer.close()


def test_an_explorer_refuses_what_means_nothing_and_stays_as_it_was(docs: Any) -> None:  # noqa: F811
    explorer = Explorer(docs)
    first = explorer.result
    with pytest.raises(InvalidInputError, match="say first what to find more of"):
        explorer.less_like(first[0]["_id"])
    with pytest.raises(InvalidInputError, match="from 1 to 48"):
        explorer.narrow(n=49)
    assert explorer.result is first
    assert explorer.query == "docs.find({}, limit=12)"


def test_hostile_documents_are_escaped_in_the_explorer(docs: Any, notebook: None) -> None:  # noqa: F811
    docs.delete_many({})
    docs.insert_many([{"text": text} for text in PAYLOADS if len(text) < 10_000 and text.isprintable()])
    for start in range(0, len(PAYLOADS), 48):
        explorer = Explorer(docs, like={"text": " ".join(PAYLOADS[start : start + 3])[:900]}, n=48)
        explorer._repr_mimebundle_()
        press(explorer, "more", 3)
        drawn = explorer._view.html
        assert [part for part in foreign_parts(drawn) if not part.startswith(OURS)] == []
        assert len(drawn) < 1_000_000
        explorer.close()


def test_a_map_shows_what_the_index_searches(docs: Any, notebook: None) -> None:  # noqa: F811
    pytest.importorskip("jscatter")
    docs.update_one({"text": {"$regex": "scarf"}}, {"$unset": {"_outputs": 1, "_sddb": 1}})
    seen = EmbeddingMap(docs, {"price": {"$lt": 100}}, color="color")
    wanted = list(docs.find({"price": {"$lt": 100}, "text": {"$not": {"$regex": "scarf"}}}))
    assert seen.points.ids == ids(wanted)
    rows = np.stack([document["_outputs"]["text"]["words"] for document in wanted])
    np.testing.assert_array_equal(seen.points.vectors, rows)
    _, _, axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(seen.xy), np.abs((rows - rows.mean(axis=0)) @ axes[:2].T), atol=1e-4)
    shown = seen._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in shown
    assert "4 documents of" in shown["text/plain"]
    seen.select(seen.points.ids[1:3])
    assert seen.filter == {"_id": {"$in": seen.points.ids[1:3]}}
    assert ids(seen.documents()) == seen.points.ids[1:3]
    seen.close()
    with pytest.raises(NotFoundError, match="a map needs three"):
        EmbeddingMap(docs, {"price": 0})


def test_a_map_is_as_dark_as_its_page(docs: Any, notebook: None) -> None:  # noqa: F811
    pytest.importorskip("jscatter")
    seen = EmbeddingMap(docs, color="color")
    seen._repr_mimebundle_()
    view, theme, *_ = seen._parts
    assert list(view.background_color) == [1, 1, 1, 1]
    assert [0, 0, 0, 1] in [list(color) for color in view.color]
    theme.set_state({"dark": True})  # as the page does
    assert max(view.background_color[:3]) < 0.1
    assert min(view.legend_color[:3]) > 0.5
    assert min(max(color[:3]) for color in view.color) > 0.5
    seen.close()


def test_a_map_is_coloured_by_numbers_and_tells_where_it_is_by_nothing(docs: Any, notebook: None) -> None:  # noqa: F811
    pytest.importorskip("jscatter")
    docs.insert_many([{"text": f"hat {n}", "price": n * 1.5, "color": f"shade {n}"} for n in range(30)])
    priced = EmbeddingMap(docs, color="price")
    priced._repr_mimebundle_()
    view, theme, *_ = priced._parts
    assert len(view.color) == 256
    assert "too many" not in repr(priced)
    theme.set_state({"dark": True})
    assert min(max(color[:3]) for color in view.color) > 0.5
    labels = list(priced._frame()["label"])
    assert "43.5 · hat 29" in labels
    priced.close()
    shades = EmbeddingMap(docs, color="color")
    assert "34 values of color are too many to colour" in repr(shades)
    shades.close()


@pytest.mark.drill
def test_a_better_layout_is_a_job_and_takes_the_place_of_the_first(docs: Any, notebook: None) -> None:  # noqa: F811
    pytest.importorskip("umap")
    manifold = pytest.importorskip("sklearn.manifold")
    docs.insert_many([{"text": f"thing{a} stuff{b}"} for a in range(12) for b in range(12)])
    seen = EmbeddingMap(docs, {"price": {"$exists": False}}, layout="umap")
    assert seen.layout == "pca"
    shown = seen._repr_mimebundle_()
    assert "UMAP is being computed" in shown["text/plain"]
    first = seen._scatter.widget.points.copy()
    seen.wait(120)
    assert seen.layout == "umap"
    assert "UMAP is being" not in repr(seen)
    assert "· UMAP" in seen._parts[2].value
    assert not np.array_equal(first, seen._scatter.widget.points)
    assert manifold.trustworthiness(seen.points.vectors, seen.xy, n_neighbors=5) > 0.8
    seen.close()
    job = docs.jobs[seen.job.id]
    assert (job.record["kind"], job.status, job.progress) == ("layout", "succeeded", (144, 144, 0))
    assert "of" in job.record["note"]
    found, places = docs.layout(job.id).places()
    assert found == seen.points.ids
    np.testing.assert_array_equal(places, seen.xy)
    docs.delete_one({"_id": found[0]})
    again = EmbeddingMap(docs, layout="pca")
    kept, at = again.points.among(found)
    assert (kept.ids, at[0]) == (found[1:], 1)
    again.close()


@pytest.mark.skipif(find_spec("umap") is None, reason="no UMAP here; to import it takes 20 s of a processor")
def test_a_layout_that_is_cancelled_leaves_the_first_and_no_process(
    docs: Any,  # noqa: F811
    notebook: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = threading.Event()
    real = plane._started

    def started(*args: Any) -> Any:
        children.append(real(*args))
        begun.set()
        return children[-1]

    children: list[Any] = []
    monkeypatch.setattr(plane, "_started", started)
    seen = EmbeddingMap(docs, layout="umap")
    assert begun.wait(20)
    assert seen.job is not None
    seen.job.cancel()
    seen.wait(20)
    assert "the better layout was cancelled" in repr(seen)
    assert (seen.layout, seen.job.status) == ("pca", "cancelled")
    assert children[0].poll() == -signal.SIGKILL
    with pytest.raises(JobCancelledError):
        seen.job.places()


def test_a_layout_that_means_nothing_is_refused(docs: Any) -> None:  # noqa: F811
    with pytest.raises(InvalidInputError, match="needs three"):
        docs.lay_out("meaning", {"price": 0})
    with pytest.raises(InvalidInputError, match="limit=2"):
        docs.lay_out("meaning", limit=2)
    with pytest.raises(NotFoundError):
        docs.lay_out("nothing")
    with pytest.raises(NotFoundError, match="two weeks"):
        docs.layout("nothing")


def test_a_live_view_moves_and_ends_as_a_picture(monkeypatch: pytest.MonkeyPatch, notebook: None) -> None:
    looks, shown, seen = iter(range(1000)), [], threading.Event()

    class Handle:
        def update(self, bundle: Any, raw: bool) -> None:
            shown.append(bundle)

    def display(bundle: Any, **_: Any) -> Handle:
        shown.append(bundle)
        return Handle()

    def look() -> Note:
        if (number := next(looks)) == 2:
            raise ConnectionError("lost")
        if number > 4:
            seen.set()
        return Note(f"look {number}")

    monkeypatch.setattr("IPython.display.display", display)
    first, second = (Live(look, "test", interval=0.01) for _ in range(2))
    first._ipython_display_()
    assert "application/vnd.jupyter.widget-view+json" in shown[0]
    assert seen.wait(10)
    second._ipython_display_()
    assert first.ended.wait(10)
    second.stop()
    assert second.ended.wait(10)
    assert "application/vnd.jupyter.widget-view+json" not in shown[-1]
