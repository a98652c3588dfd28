"""The part of ``Collection`` that reads: as pymongo does, and by similarity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from pymongo.typings import _DocumentType

from superduper_nb.client.cursor import Cursor, DecodingCommandCursor, handed_out, split_like
from superduper_nb.client.evaluating import Evaluation, evaluated
from superduper_nb.client.features import Features
from superduper_nb.client.jobs import Duplicates
from superduper_nb.client.joining import Join
from superduper_nb.client.validating import ValidationSet
from superduper_nb.client.writing import WritingCollection
from superduper_nb.errors import InvalidInputError, stoppable
from superduper_nb.jobs import NewJob
from superduper_nb.jobs.duplicates import PairStore
from superduper_nb.search.ids import id_key
from superduper_nb.search.reading import current_outputs
from superduper_nb.search.values import Like, SearchReply, SearchRequest, check_n, check_range

__all__ = ["FindingCollection"]

_MAX_PAIRS: Final = 1_000_000
_LARGE: Final = 16_384
"""Bytes a document."""


class FindingCollection(WritingCollection[_DocumentType]):
    """A collection that can be searched."""

    def find(
        self,
        filter: Mapping[str, Any] | None = None,
        *args: Any,
        like: Like | Sequence[Like] | None = None,
        n: int = 10,
        semantic_index: str | None = None,
        exact: bool = False,
        min_score: float | None = None,
        max_score: float | None = None,
        unlike: Like | Sequence[Like] | None = None,
        diversity: float = 0.0,
        text: str | None = None,
        group_by: str | None = None,
        features: Mapping[str, str] | None = None,
        similar_join: str | None = None,
        raw: bool = False,
        **kwargs: Any,
    ) -> Cursor[_DocumentType]:
        """Query the database, as `pymongo.collection.Collection.find`; with `like`, by similarity.

        Of the documents that match the filter and carry a current output, the `n` best by the index's measure, best
        first, ties by ``_id``; each has ``_score``, higher is better. Where k ≤ n match, exactly those k come back.

        Parameters
        ----------
        filter : mapping, optional
            As in pymongo; ``{"$like": …}`` at its top level is another way to give `like`.
        *args, **kwargs
            pymongo's: projection, skip, limit, sort, … They apply to the result of the search, which may also be sorted
            by ``_score``.
        like : mapping or sequence of mapping, optional
            Any key of the index with its value, a whole document, or ``{"_id": …}``. Of several examples, their mean
            (of their directions, under cosine).
        n : int, default 10
            How many; at most 10 000.
        semantic_index : str, optional
            Which; not needed where the collection has only one.
        exact : bool, default False
            Compare with every vector, whatever the index is.
        min_score, max_score : float, optional
            Only what scores in this range, its ends included.
        unlike : mapping or sequence of mapping, optional
            Examples to stay away from: the query is ``2 p - q`` for means p of `like` and q of `unlike` (Rocchio 1971).
        diversity : float, default 0
            From 0, the nearest, to 1, those least like each other: maximal marginal relevance with lambda =
            1 - diversity, among the ``10 n`` nearest (at least 100, at most 10 000). ``_score`` stays that of nearness;
            the documents come in the order in which they were chosen.
        text : str, optional
            Words for MongoDB's text search, fused with the ranking by nearness (reciprocal rank fusion): ``_score`` is
            the sum over both rankings of 1 / (60 + rank), counted as far as the first ``10 n`` of each (at least 100,
            at most 10 000). The filter applies to both; documents without an output are ranked by words alone.
        group_by : str, optional
            A field: only the best document of each of its values; those without it are one group.
        features : mapping of str to str, optional
            ``{key: model}``: that model's output on the key in the place of the value; None where there is none of its
            present version.
        similar_join : str, optional
            A neighbourhood: in ``_like.<its name>`` come documents, read by one query for each batch, in the place of
            identifiers; a projection applies to them, too. Those that were deleted are left out.
        raw : bool, default False
            Leave stored values as they are.

        Notes
        -----
        `diversity`, `text` and `group_by` exclude each other; `text` excludes ranges of scores. Everything else
        combines.
        """
        filter, in_filter = split_like(filter)
        filter = self._filter(filter)
        if in_filter is not None and like is not None:
            raise InvalidInputError("Both like= and $like in the filter: give one of them.")
        cursor: Cursor[_DocumentType] = Cursor(self, filter, *args, **kwargs)
        if not raw and (read := self._workspace.reader(self.codec_options)) is not None:
            cursor._read = read
        if features:
            cursor._features = Features(self._workspace, self.name, features)
        if similar_join is not None:
            self._workspace.store.get("neighbourhood", similar_join, collection=self.name)
            cursor._join = Join(similar_join)
        like = in_filter if like is None else like
        if (features or similar_join or like is not None) and not issubclass(
            self.codec_options.document_class, MutableMapping
        ):
            raise InvalidInputError(
                "A search, features= or similar_join= adds to documents: document_class must be one that can grow."
            )
        asked = {
            **{"min_score": min_score, "max_score": max_score, "unlike": unlike},
            **{"diversity": diversity, "text": text, "group_by": group_by},
        }
        if like is not None:
            request = self._request(like, n=n, semantic_index=semantic_index, exact=exact, **asked)
            cursor._request, cursor._search = request, self._searched
            cursor._weigh = partial(self._workspace.document_bytes.__setitem__, self.name)
        elif given := [name for name, value in asked.items() if value not in (None, 0.0)]:
            raise InvalidInputError(f"{given[0]}= goes with like=: say near to what.")
        return cursor

    def find_many(
        self,
        likes: Sequence[Like],
        filter: Mapping[str, Any] | None = None,
        projection: Mapping[str, Any] | Sequence[str] | None = None,
        *,
        n: int = 10,
        semantic_index: str | None = None,
        exact: bool = False,
        min_score: float | None = None,
        max_score: float | None = None,
        features: Mapping[str, str] | None = None,
        raw: bool = False,
    ) -> list[list[_DocumentType]]:
        """Find the nearest to each of many queries, in one search and one query for the documents.

        Parameters
        ----------
        likes : sequence of mapping
            As `like` of `find`, at most 1 000; with `n`, at most 100 000 results in all.
        filter, projection, n, semantic_index, exact, min_score, max_score, features, raw
            As those of `find`, for all of them.

        Returns
        -------
        list of list of documents
            For each query what `find` gives.
        """
        encoded = self._workspace.codec.encode(list(likes)) if isinstance(likes, (list, tuple)) else likes
        options = {"n": n, "semantic_index": semantic_index, "exact": exact}
        request = self._of_here(likes=encoded, min_score=min_score, max_score=max_score, **options)
        filter = self._filter(filter)
        reply = self._searched(request, filter)
        hidden = False
        if isinstance(projection, Mapping) and projection.get("_id", 1) in (0, False):
            hidden, projection = True, {name: value for name, value in projection.items() if name != "_id"} or None
        among: dict[str, Any] = {"_id": {"$in": list({id_key(id): id for ids in reply.ids for id in ids}.values())}}
        query = {"$and": [among, filter]} if filter else among
        found = {
            id_key(document["_id"]): document for document in self.find(query, projection, features=features, raw=raw)
        }
        return handed_out(found, reply, hidden=hidden)

    def decoded(self, documents: Iterable[Any]) -> list[_DocumentType]:
        """Return documents that were read with ``raw=True`` as they come without it."""
        read = self._workspace.reader(self.codec_options)
        return list(documents) if read is None else read(documents)

    def evaluate(
        self,
        semantic_index: str,
        queries: str | Iterable[tuple[Like, Iterable[Any]]],
        *,
        n: int = 10,
        filter: Mapping[str, Any] | None = None,
        exact: bool = False,
    ) -> Evaluation:
        """Measure how well an index finds: recall@n, mean reciprocal rank and nDCG@n.

        Parameters
        ----------
        semantic_index : str
            Which one.
        queries : iterable of pairs, or str
            A `like` (as of `find`), and the identifiers of the documents that are relevant to it. Or a validation set
            with a splitter: each query part is to find the document that it is of.
        n, filter, exact
            As those of `find`, for all queries.
        """

        def search(likes: Sequence[Like]) -> list[list[Any]]:
            encoded = self._workspace.codec.encode(list(likes))
            request = self._of_here(likes=encoded, n=n, semantic_index=semantic_index, exact=exact)
            return self._searched(request, filter).ids

        check_n(n)
        pairs = self._query_parts(queries) if isinstance(queries, str) else queries
        return evaluated(search, semantic_index, pairs, n)

    def _query_parts(self, id: str) -> Iterator[tuple[Like, list[Any]]]:
        workspace = self._workspace
        held = ValidationSet(workspace, workspace.store.get("validation_set", id, collection=self.name))
        return ((query, [document["_id"]]) for document, (query, _) in zip(held, held.pairs(), strict=True))

    def find_duplicates(self, semantic_index: str, *, min_score: float = 0.95, limit: int = 100_000) -> Duplicates:
        """Find the pairs of documents whose vectors are near each other, by a job.

        Parameters
        ----------
        semantic_index : str
            Which one.
        min_score : float, default 0.95
            What a pair has to score.
        limit : int, default 100 000
            Pairs, at most: of more, the best.

        Returns
        -------
        Duplicates
            The job; its `pairs()`, when it has ended. They are kept for two weeks.
        """
        if type(limit) is not int or not 1 <= limit <= _MAX_PAIRS:
            raise InvalidInputError(f"limit={limit!r:.80}: it must be a whole number from 1 to {_MAX_PAIRS}.")
        check_range(min_score, None)
        workspace = self._workspace
        index = workspace.store.get("semantic_index", semantic_index, collection=self.name)
        documents = workspace.store.database[self.name].count_documents(current_outputs(workspace.loader, index))
        work = {"ids": ["all pairs"]}
        job = NewJob("duplicates", f"duplicates {index.id}", self.name, index.id, work, documents)
        PairStore(workspace.store.database).plan(job.id, min_score=min_score, limit=limit)
        workspace.jobs.create([job])
        workspace.started({job.name: job.id})
        return Duplicates(workspace, job.id)

    def duplicates(self, job: str) -> Duplicates:
        """Return a search for duplicates that was begun before, by its job's identifier."""
        PairStore(self._workspace.store.database).run(job)
        return Duplicates(self._workspace, job)

    def catch_up(self) -> None:
        """Have later searches of this client see all that is in MongoDB by now, whoever wrote it.

        What was written by this client, or by jobs that it waited for, they see anyway.
        """
        self.database.client.admin.command("ping")  # each answer tells MongoDB's time
        self._workspace.mark()

    def _request(self, like: Any, **options: Any) -> SearchRequest:
        """Return a checked search; its filter is still to come."""
        encode = self._workspace.codec.encode
        if options.get("unlike") is not None:
            options["unlike"] = encode(options["unlike"])
        by_id = isinstance(like, Mapping) and set(like) == {"_id"} and like["_id"] is not None
        return self._of_here(**({"id": like["_id"]} if by_id else {"like": encode(like)}), **options)

    def _of_here(self, **options: Any) -> SearchRequest:
        return SearchRequest(database=self.database.name, collection=self.name, **options)

    def _searched(
        self, request: SearchRequest, filter: Mapping[str, Any] | None, untested: bool = False
    ) -> SearchReply:
        workspace = self._workspace
        # To read a few documents more than are wanted is cheaper than to ask twice, unless they are large.
        untested = untested and workspace.document_bytes.get(self.name, 0.0) < _LARGE
        among = dict(filter) if filter else None
        asked = replace(request, filter=among, after=workspace.after, untested=untested)
        with stoppable("The search"):
            return workspace.services.search(asked)

    def aggregate(
        self,
        pipeline: Any,
        *args: Any,
        n: int = 10,
        semantic_index: str | None = None,
        exact: bool = False,
        min_score: float | None = None,
        max_score: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Aggregate, as `pymongo.collection.Collection.aggregate`.

        A first stage ``{"$like": {…}}``, or one behind a first ``{"$match": {…}}``, searches: the stages behind it see
        the `n` nearest, best first, with ``_score``. `n` to `max_score` are as those of `find`.
        """
        if isinstance(pipeline, (list, tuple)):
            asked = {"exact": exact, "min_score": min_score, "max_score": max_score}
            pipeline = self._with_search(pipeline, n=n, semantic_index=semantic_index, **asked)
        if self._workspace.reader(self.codec_options) is None:
            return super().aggregate(pipeline, *args, **kwargs)
        return self._decoding_aggregate(pipeline, *args, **kwargs)

    def _decoding_aggregate(
        self, pipeline: Any, session: Any = None, let: Any = None, comment: Any = None, **kwargs: Any
    ) -> Any:
        from pymongo.synchronous.aggregation import _CollectionAggregationCommand

        with self.database.client._tmp_session(session) as opened:
            return self._aggregate(
                _CollectionAggregationCommand,
                pipeline,
                DecodingCommandCursor,
                session=opened,
                let=let,
                comment=comment,
                **kwargs,
            )

    def _with_search(self, pipeline: Any, **asked: Any) -> Any:
        at = next((i for i, stage in enumerate(pipeline) if isinstance(stage, Mapping) and "$like" in stage), None)
        if at is None:
            if given := [name for name in ("min_score", "max_score") if asked[name] is not None]:
                raise InvalidInputError(f"{given[0]}= goes with a stage $like: say near to what.")
            return pipeline
        if at > 1 or (at == 1 and set(pipeline[0]) != {"$match"}):
            raise InvalidInputError("$like is the first stage of a pipeline, or the second behind one $match.")
        like, filter = pipeline[at]["$like"], pipeline[0]["$match"] if at else None
        reply = self._searched(self._request(like, **asked), filter)
        rank = {"$indexOfArray": [{"$literal": reply.ids}, "$_id"]}
        found = {"_sddb": rank, "_score": {"$arrayElemAt": [reply.scores, rank]}}
        if reply.distances is not None:
            found["_distance"] = {"$arrayElemAt": [reply.distances, rank]}
        return [
            {"$match": {"_id": {"$in": reply.ids}}},
            {"$set": found},
            {"$sort": {"_sddb": 1}},
            {"$unset": "_sddb"},
            *pipeline[at + 1 :],
        ]
