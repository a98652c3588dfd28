from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superduper_nb.errors import InvalidInputError
from superduper_nb.jobs.upkeep import Neighbourhood, Upkeep, new_jobs
from superduper_nb.jobs.watchers import Watcher, plan


def ids(planned: list[tuple[Watcher, tuple[str, ...]]]) -> list[str]:
    return [found.id for found, _ in planned]


def test_a_diamond_runs_each_once_and_its_sink_last() -> None:
    top = Watcher("docs", "a", "x")
    left = Watcher("docs", "b", "x", features={"x": "a"})
    right = Watcher("docs", "c", "x", features={"x": "a"})
    sink = Watcher("docs", "d", "_base", features={"x": "b", "y": "z"})
    other = Watcher("docs", "z", "y", features={"x": "c"})
    planned = plan([sink, other, right, left, top])
    assert sorted(ids(planned)) == ["a/x", "b/x", "c/x", "d/_base", "z/y"]
    assert {found.id: before for found, before in planned}["d/_base"] == ("b/x", "z/y")


def test_a_circle_is_named() -> None:
    circle = [Watcher("docs", "a", "x", features={"x": "b"}), Watcher("docs", "b", "x", features={"x": "a"})]
    with pytest.raises(InvalidInputError, match="circle"):
        plan(circle)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (None, ["a/x", "b/x.y", "c/z"]),
        ({"x"}, ["a/x", "b/x.y"]),
        ({"x.y"}, ["a/x", "b/x.y"]),
        ({"x.q"}, ["a/x"]),
        ({"other"}, []),
    ],
)
def test_only_watchers_that_a_change_concerns_are_planned(changed: set[str] | None, expected: list[str]) -> None:
    watchers = [Watcher("docs", "a", "x"), Watcher("docs", "b", "x.y"), Watcher("docs", "c", "z")]
    assert sorted(ids(plan(watchers, changed))) == expected


def test_a_filter_may_look_at_any_field_so_any_change_concerns_it() -> None:
    assert ids(plan([Watcher("docs", "a", "x", filter={"other": 1})], {"other"})) == ["a/x"]


@st.composite
def graphs(draw: st.DrawFn) -> list[Watcher]:
    size = draw(st.integers(1, 8))
    made = []
    for n in range(size):
        upstream = draw(st.sets(st.integers(0, n - 1))) if n else set()
        made.append(Watcher("docs", f"m{n}", f"k{n}", features={f"k{i}": f"m{i}" for i in upstream}))
    return draw(st.permutations(made))


@given(graphs(), st.data())
def test_every_plan_is_topological_complete_and_without_repeats(watchers: list[Watcher], data: st.DataObject) -> None:
    changed = data.draw(st.none() | st.sets(st.sampled_from([found.key for found in watchers])))
    planned = plan(watchers, changed)
    order = ids(planned)
    assert len(order) == len(set(order))
    for position, (found, before) in enumerate(planned):
        assert set(before) == found.upstream & set(order)
        assert all(order.index(name) < position for name in before)
    concerned = {found.id for found in watchers if changed is None or found.key in changed}
    while grown := {w.id for w in watchers if w.upstream & concerned} - concerned:
        concerned |= grown
    features = {w.id for w in watchers if changed and changed & set(w.features)}
    assert concerned <= set(order)
    assert set(order) <= concerned | features | {w.id for w in watchers if w.upstream & set(order)}


@given(graphs(), st.data())
def test_downloads_come_first_and_neighbours_last_each_once(watchers: list[Watcher], data: st.DataObject) -> None:
    keys = st.sets(st.sampled_from([found.key for found in watchers]))
    content, changed = data.draw(keys), data.draw(keys)
    near = [Neighbourhood(f"near{i}", "index", found.id, False) for i, found in enumerate(watchers)]
    steps = Upkeep(tuple(watchers), tuple(near)).steps(changed, content)
    names = [step.name for step in steps]
    assert len(names) == len(set(names))
    assert ("download" in names) == bool(content)
    by_name = {step.name: step for step in steps}
    for found in watchers:
        if found.key in content:
            assert "download" in by_name[found.id].before
    planned = {step.component for step in steps if step.kind == "outputs"}
    assert planned == {found.id for found, _ in plan(watchers, changed | content)}
    assert {step.before for step in steps if step.kind == "neighbours"} == {(id,) for id in planned}
    jobs = new_jobs(steps, "docs", dict.fromkeys(("download", "outputs", "neighbours"), ({"ids": []}, 0)))
    order = [job.id for job in jobs.values()]
    for job in jobs.values():
        assert all(order.index(parent) < order.index(job.id) for parent in job.parents)
