"""The part of ``Collection`` that reads: as pymongo does, and by similarity."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from pymongo.typings import _DocumentType

from superduper_nb.client.cursor import Cursor, DecodingCommandCursor, split_like
from superduper_nb.client.features import Features
from superduper_nb.client.writing import WritingCollection
from superduper_nb.errors import InvalidInputError
from superduper_nb.search.values import SearchReply, SearchRequest, check_n

__all__ = ["FindingCollection"]


class FindingCollection(WritingCollection[_DocumentType]):
    """A collection that can be searched."""

    def find(
        self,
        filter: Mapping[str, Any] | None = None,
        *args: Any,
        like: Mapping[str, Any] | None = None,
        n: int = 10,
        semantic_index: str | None = None,
        exact: bool = False,
        min_score: float | None = None,
        features: Mapping[str, str] | None = None,
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
        like : mapping, optional
            Any key of the index with its value, a whole document, or ``{"_id": …}``.
        n : int, default 10
            How many; at most 10 000.
        semantic_index : str, optional
            Which; not needed where the collection has only one.
        exact : bool, default False
            Compare with every vector, whatever the index is.
        min_score : float, optional
            Leave out what scores less.
        features : mapping of str to str, optional
            ``{key: model}``: that model's output on the key in the place of the value; None where there is none of its
            present version.
        raw : bool, default False
            Leave stored values as they are.
        """
        filter, in_filter = split_like(filter)
        if in_filter is not None and like is not None:
            raise InvalidInputError("Both like= and $like in the filter: give one of them.")
        cursor: Cursor[_DocumentType] = Cursor(self, filter, *args, **kwargs)
        if not raw and (read := self._workspace.reader(self.codec_options)) is not None:
            cursor._read = read
        if features:
            cursor._features = Features(self._workspace, self.name, features)
        like = in_filter if like is None else like
        if (features or like is not None) and not issubclass(self.codec_options.document_class, MutableMapping):
            raise InvalidInputError(
                "A search, or features=, adds to documents: document_class must be one that can grow."
            )
        if like is not None:
            options = {"n": n, "semantic_index": semantic_index, "exact": exact, "min_score": min_score}
            _check_search(like, n)
            cursor._search = lambda spec: self._searched(like, spec, **options)
        return cursor

    def _searched(self, like: Mapping[str, Any], filter: Mapping[str, Any] | None, **options: Any) -> SearchReply:
        workspace = self._workspace
        what = {"id": like["_id"]} if set(like) == {"_id"} else {"like": workspace.codec.encode(dict(like))}
        request = SearchRequest(
            database=self.database.name,
            collection=self.name,
            filter=dict(filter) if filter else None,
            after=workspace.after,
            **what,
            **options,
        )
        return workspace.services.search(request)

    def aggregate(
        self, pipeline: Any, *args: Any, n: int = 10, semantic_index: str | None = None, **kwargs: Any
    ) -> Any:
        """Aggregate, as `pymongo.collection.Collection.aggregate`.

        A first stage ``{"$like": {…}}``, or one behind a first ``{"$match": {…}}``, searches: the stages behind it see
        the `n` nearest, best first, with ``_score``.
        """
        if isinstance(pipeline, (list, tuple)):
            pipeline = self._with_search(pipeline, n, semantic_index)
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

    def _with_search(self, pipeline: Any, n: int, semantic_index: str | None) -> Any:
        at = next((i for i, stage in enumerate(pipeline) if isinstance(stage, Mapping) and "$like" in stage), None)
        if at is None:
            return pipeline
        if at > 1 or (at == 1 and set(pipeline[0]) != {"$match"}):
            raise InvalidInputError("$like is the first stage of a pipeline, or the second behind one $match.")
        like, filter = pipeline[at]["$like"], pipeline[0]["$match"] if at else None
        _check_search(like, n)
        reply = self._searched(like, filter, n=n, semantic_index=semantic_index)
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


def _check_search(like: Any, n: int) -> None:
    if not isinstance(like, Mapping) or not like:
        raise InvalidInputError(
            f"like= is a document with a key of the index, such as {{'text': 'warm'}}; given {like!r:.80}."
        )
    check_n(n)
