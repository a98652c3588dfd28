"""More than the nearest: each option beside its definition in float64 over what MongoDB holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from superduper_nb.errors import InvalidInputError
from superduper_nb.search import SearchRequest
from superduper_nb.search.ids import id_key
from superduper_nb.search.refine import pool_size
from tests.search.conftest import Corpus, assert_equal, packed

ROWS, D = 1500, 16
MEASURES = ["cosine", "dot", "l2", "chebyshev"]
WORDS = ("red", "wool", "warm", "scarf", "straw", "hat")
FILTERS: tuple[Any, ...] = (None, {"n": {"$lt": 900}}, {"n": {"$lt": 40}}, {"n": -1})


def softmin(queries: Any, vectors: Any) -> Any:
    """Return a measure that is none of the built-in ones."""
    return -np.abs(queries[:, None, :] - vectors[None, :, :]).max(axis=2)


@pytest.fixture(params=MEASURES)
def made(corpus: Any, request: Any) -> Corpus:
    filled: Corpus = corpus(request.param, function=softmin if request.param == "chebyshev" else None)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((ROWS, D)).astype(np.float32)
    vectors[700:720] = vectors[:20]  # ties
    authors: list[Any] = [None, 1, 1.0, "x", ["a", "b"], {"k": 1}, *range(2, 25)]
    rows = []
    for i, vector in enumerate(vectors):
        meta = {} if i % 29 == 28 else {"author": authors[random.integers(len(authors))]}
        text = " ".join(random.choice(WORDS, 3))
        rows.append(filled.document(i, packed(vector), n=int(random.integers(ROWS)), text=text, meta=meta))
    filled.docs.insert_many(rows)
    filled.docs.insert_one({"_id": "no output", "text": "red wool warm scarf", "n": 0})
    return filled


def query(seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal(D).astype(np.float32)


def stored(made: Corpus, id: Any) -> Any:
    document = made.docs.find_one({"_id": id})
    assert document is not None
    return np.frombuffer(document["_outputs"]["x"]["m"][2:], dtype="<f4")


def test_ranges(made: Corpus) -> None:
    truth = [score for _, score in made.truth(query())]
    for filter in FILTERS:
        for high in (truth[0] + 1, truth[3], truth[700], truth[-1], truth[-1] - 1):
            expected = [pair for pair in made.truth(query(), filter) if pair[1] <= high + 1e-12]
            for n in (5, 200):
                assert_equal(made.ask(query(), n=n, filter=filter, max_score=high + 1e-12), expected, n)
        low, high = truth[800] - 1e-12, truth[300] + 1e-12
        inside = [pair for pair in made.truth(query(), filter) if low <= pair[1] <= high]
        assert_equal(made.ask(query(), n=1000, filter=filter, min_score=low, max_score=high), inside, 1000)


def test_several_examples_and_what_to_stay_away_from(made: Corpus) -> None:
    def mean(rows: Any) -> Any:
        rows = np.asarray(rows, dtype=np.float64)
        if made.measure == "cosine":
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return rows.mean(axis=0)

    like = [{"x": query(2).tolist()}, {"_id": 7}]
    p = mean([query(2), stored(made, 7)])
    q = mean([query(3), stored(made, 9), stored(made, 11)])
    unlike = [{"x": query(3).tolist()}, {"_id": 9}, {"_id": 11}]
    assert_equal(made.ask(like=like, n=20), made.truth(p), 20)
    assert_equal(made.ask(like=like, unlike=unlike, n=20), made.truth(2 * p - q), 20)
    assert_equal(
        made.ask(id=7, unlike={"_id": 9}, n=20), made.truth(2 * mean([stored(made, 7)]) - mean([stored(made, 9)])), 20
    )
    assert made.queries.count(("m", made.version)) == 3  # a model is called once for all examples of a kind
    if made.measure == "cosine":
        with pytest.raises(InvalidInputError, match="zero"):
            made.ask(like=[{"x": query().tolist()}, {"x": (-query()).tolist()}])


def marginal(made: Corpus, q: Any, filter: Any, diversity: float, n: int) -> list[Any]:
    """Choose by Carbonell and Goldstein's formula, a document at a time."""
    pool = made.truth(q, filter)[: pool_size(n)]
    rows = {id: stored(made, id).astype(np.float64) for id, _ in pool}
    chosen: list[Any] = []
    while len(chosen) < min(n, len(pool)):
        left = [(id, score) for id, score in pool if id not in chosen]

        def margin(pair: Any) -> float:
            likest = max((made.score(rows[c], rows[pair[0]]) for c in chosen), default=0.0)
            return (1 - diversity) * pair[1] - diversity * likest if chosen else pair[1]

        chosen.append(max(left, key=margin)[0])
    return chosen


def test_diversity(made: Corpus) -> None:
    nearest = made.ask(query(), n=8).ids
    assert made.ask(query(), n=8, diversity=0).ids == nearest
    for filter in FILTERS:
        for diversity in (0.3, 0.7):
            reply = made.ask(query(), n=8, filter=filter, diversity=diversity)
            assert reply.ids == marginal(made, query(), filter, diversity, 8)
            scores = dict(made.truth(query(), filter))
            np.testing.assert_allclose(reply.scores, [scores[id] for id in reply.ids], rtol=1e-6)
    assert made.ask(query(), n=8, diversity=0.9).ids != nearest


def groups(made: Corpus, q: Any, filter: Any, **inside: float) -> list[tuple[Any, float]]:
    """Return the best of each group, by reading every document."""
    authors = {d["_id"]: id_key(d.get("meta", {}).get("author")) for d in made.docs.find({}, {"meta": 1})}
    best: dict[Any, tuple[Any, float]] = {}
    for id, score in made.truth(q, filter):
        if score <= inside.get("max_score", np.inf):
            best.setdefault(authors[id], (id, score))
    return list(best.values())


def test_groups(made: Corpus) -> None:
    for filter in FILTERS:
        expected = groups(made, query(), filter)
        for n in (3, 20, 500):  # there are 28 of them
            assert_equal(made.ask(query(), n=n, filter=filter, group_by="meta.author"), expected, n)
    high = made.truth(query())[30][1] + 1e-12
    capped = groups(made, query(), FILTERS[1], max_score=high)
    assert_equal(made.ask(query(), n=10, filter=FILTERS[1], group_by="meta.author", max_score=high), capped, 10)
    assert len(groups(made, query(), None)) == 28
    assert made.ask(query(), n=10, group_by="nowhere").ids == made.ask(query(), n=1).ids


def fusion(made: Corpus, q: Any, filter: Any, text: str, n: int) -> dict[Any, float]:
    near = [id for id, _ in made.truth(q, filter)][: pool_size(n)]
    meta = {"$meta": "textScore"}
    said = made.docs.find({"$and": [{"$text": {"$search": text}}, filter or {}]}, {"s": meta})
    ranked = sorted(said, key=lambda d: (-d["s"], isinstance(d["_id"], str), d["_id"]))
    words = [d["_id"] for d in ranked][: pool_size(n)]
    return {
        id: sum(1 / (60 + 1 + ranking.index(id)) for ranking in (near, words) if id in ranking)
        for id in {*near, *words}
    }


def test_words_beside_nearness(made: Corpus) -> None:
    with pytest.raises(InvalidInputError, match=r'has none. Make one: docs.create_index\(\[\("x", "text"\)'):
        made.ask(query(), text="red")
    made.docs.create_index([("text", "text")])
    for filter in FILTERS:
        for n in (5, 60):
            reply = made.ask(query(), n=n, filter=filter, text="red wool")
            expected = fusion(made, query(), filter, "red wool", n)
            best = sorted(expected.values(), reverse=True)[:n]
            np.testing.assert_allclose(reply.scores, best, rtol=1e-12)
            np.testing.assert_allclose([expected[id] for id in reply.ids], best, rtol=1e-12)
    assert "no output" in made.ask(query(), n=5, filter={"n": 0}, text="scarf").ids
    assert set(made.ask(query(), n=100, filter={"n": {"$lt": 20}}, text="scarf").ids) >= {
        id for id, _ in made.truth(query(), {"n": {"$lt": 20}})
    }  # if k <= n match, all of them come
    with pytest.raises(InvalidInputError, match="refuses the filter"):
        made.ask(query(), text="red", filter={"n": {"$nope": 1}})


def test_batches(made: Corpus) -> None:
    queries = [query(seed) for seed in range(12)]
    for filter in FILTERS:
        for options in (
            {},
            {"exact": True},
            {"min_score": made.truth(query())[40][1]},
            {"max_score": made.truth(query())[40][1]},
        ):
            reply = made.ask(queries, n=10, filter=filter, **options)
            assert len(reply.ids) == 12
            for i, q in enumerate(queries):
                alone = made.ask(q, n=10, filter=filter, **options)
                assert (reply.ids[i], reply.scores[i]) == (alone.ids, alone.scores)
                assert alone.distances == (None if reply.distances is None else reply.distances[i])
    likes = made.ask(likes=[{"x": queries[0].tolist()}, {"_id": 3}, {"x": queries[1].tolist()}], n=4)
    assert likes.ids == [made.ask(queries[0], n=4).ids, made.ask(id=3, n=4).ids, made.ask(queries[1], n=4).ids]
    made.docs.delete_many({"_id": {"$in": list(range(0, 300))}})
    after = made.ask(queries, n=10)
    assert after.ids == [made.ask(q, n=10).ids for q in queries]


def test_what_a_reply_tells(made: Corpus) -> None:
    reply = made.ask(like={"x": query().tolist()}, n=5, filter={"n": {"$lt": 900}})
    assert reply.stages_ms.keys() == {"encode", "search", "filter"}
    assert sum(reply.stages_ms.values()) <= reply.took_ms
    assert 5 <= reply.survivors <= reply.candidates
    assert made.ask(query(), group_by="meta.author").strategy == "exact, then grouped"
    assert "group" in made.ask(query(), group_by="meta.author").stages_ms


CLASHES: list[tuple[dict[str, Any], str]] = [
    ({"vector": [1.0], "diversity": 0.1, "text": "a"}, "diversity= and text= don't combine"),
    ({"vector": [1.0], "group_by": "a", "text": "a"}, "text= and group_by="),
    ({"vector": [1.0], "text": "a", "min_score": 0.1}, "made of ranks"),
    ({"vector": [1.0], "min_score": 2.0, "max_score": 1.0}, "above"),
    ({"vector": [1.0], "max_score": float("nan")}, "finite"),
    ({"vector": [1.0], "diversity": 1.5}, "from 0 to 1"),
    ({"vector": [1.0], "diversity": 0.5, "n": 5000}, "at most 1000"),
    ({"vector": [1.0], "text": " "}, "words"),
    ({"vector": [1.0], "group_by": "$a"}, "not a key"),
    ({"vector": [[1.0]], "unlike": {"a": 1}}, "for one query"),
    ({"likes": [{"a": 1}], "text": "a"}, "for one query"),
    ({"likes": [], "n": 3}, "likes="),
    ({"likes": [{"a": 1}] * 1001}, "at most 1000"),
    ({"vector": [[1.0]] * 11, "n": 10_000}, "at most 10"),
    ({"like": [{"a": 1}] * 101}, "1 to 100"),
    ({"like": {"a": 1}, "unlike": []}, "unlike="),
    ({"like": {"a": 1}, "likes": [{"a": 1}]}, "exactly one"),
]


@pytest.mark.parametrize(("options", "said"), CLASHES)
def test_what_does_not_combine_is_said(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        SearchRequest(database="a", collection="b", **options)
