"""The part of ``Collection`` that makes more of its documents: neighbourhoods, validation sets, fetched content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pymongo.errors import OperationFailure
from pymongo.typings import _DocumentType

from superduper_nb.client.filters import encoded_filter
from superduper_nb.client.finding import FindingCollection
from superduper_nb.client.folds import give_folds
from superduper_nb.client.jobs import Jobs, Layout
from superduper_nb.components.store import check_identifier
from superduper_nb.components.validation import ValidationStore
from superduper_nb.errors import InvalidInputError, brief
from superduper_nb.jobs import NewJob
from superduper_nb.jobs.backfill import matching
from superduper_nb.jobs.layouts import LayoutStore
from superduper_nb.jobs.upkeep import WHOLE_COLLECTION, new_jobs
from superduper_nb.search.reading import current_outputs

__all__ = ["DerivingCollection"]

_MAX_NEIGHBOURS: Final = 1000
_MAX_POINTS: Final = 1_000_000


class DerivingCollection(FindingCollection[_DocumentType]):
    """A collection whose documents know their neighbours, can be set apart, and get their content fetched."""

    def create_neighbourhood(self, id: str, semantic_index: str, n: int = 10) -> Jobs:
        """Keep a list of the nearest documents in each document: ``_like.<id>``, read with ``find(similar_join=id)``.

        Parameters
        ----------
        id : str
            Its name.
        semantic_index : str
            Which vectors, and which measure.
        n : int, default 10
            How many; at most 1 000. Fewer where there are not so many others.

        Returns
        -------
        Jobs
            The one that makes the lists, after all that is under way in the collection.

        Notes
        -----
        A list holds the ``_id`` of the `n` nearest others, best first, ties by ``_id``; never that of the document
        itself. It is exact, and follows every insert, update and delete: also other documents' lists change where a
        document was in them, or is now among their nearest. A document without a vector has no list (an empty one where
        its output is not usable as a vector).

        Each write that changes vectors, and each delete, is followed by one job over the whole collection. For 100 000
        documents of 384 numbers on two cores: 3 s for one document that is inserted or deleted, 5 s for a thousand in
        one call (so insert many in one), and 1 min for all lists, which is a comparison of all pairs: four times as
        long for twice as many documents. The process that runs it needs up to 1 GB. An entry of a list takes about 20
        bytes.
        """
        check_identifier("A neighbourhood", id)
        if type(n) is not int or not 1 <= n <= _MAX_NEIGHBOURS:
            raise InvalidInputError(f"n={n!r:.80}: it must be a whole number from 1 to {_MAX_NEIGHBOURS}.")
        workspace = self._workspace
        workspace.store.get("semantic_index", semantic_index, collection=self.name)
        definition = {"semantic_index": semantic_index, "n": n}
        _, new = workspace.store.put("neighbourhood", id, definition, collection=self.name)
        workspace.changed()
        return workspace.started(workspace.revise(self.name, [id]) if new else {})

    def create_validation_set(
        self,
        id: str,
        filter: Mapping[str, Any] | None = None,
        *,
        sample_size: int | None = None,
        splitter: str | None = None,
    ) -> Jobs:
        """Copy documents and keep the copies as they are, to measure models on: ``docs.validation_sets[id]``.

        Parameters
        ----------
        id : str
            Its name.
        filter : mapping, optional
            Which documents. Unless it names ``_fold``, only those of the fold ``"valid"``, which nothing is trained on.
        sample_size : int, optional
            So many of them, drawn at random.
        splitter : str, optional
            A registered one, ``document -> (query part, rest)``, applied to each copy (see `ValidationSet.pairs`).

        Returns
        -------
        Jobs
            None: the copies are there when it returns. Created again with the same arguments it stays as it is.

        Raises
        ------
        InvalidInputError
            No document matches, or the splitter fails.
        """
        check_identifier("A validation set", id)
        if sample_size is not None and (type(sample_size) is not int or sample_size < 1):
            raise InvalidInputError(f"sample_size={sample_size!r:.80}: it must be a whole number of at least 1.")
        workspace = self._workspace
        checked = self._checked(filter)
        asked = {"filter": checked, "sample_size": sample_size, "splitter": splitter}
        current = workspace.store.find("validation_set", id, collection=self.name)
        if current is None or any(current.definition[name] != value for name, value in asked.items()):
            within = checked
            if "_fold" not in checked:
                within = {**checked, "_fold": "valid"}
                give_folds(workspace.store.database[self.name], checked, workspace.client._valid_fraction)
            split = None if splitter is None else self._split(splitter)
            copy, count = ValidationStore(workspace.store.database).copy(self.name, id, within, sample_size, split)
            if not count:
                raise InvalidInputError(f"No document of {self.name} matches {within!r:.200}: nothing to set apart.")
            workspace.store.put("validation_set", id, {**asked, "copy": copy, "count": count}, collection=self.name)
            workspace.changed()
        return Jobs(workspace, {})

    def _split(self, splitter: str) -> Any:
        """Return what splits a stored document into two stored parts."""
        workspace = self._workspace
        function = workspace.loader.object(workspace.store.get("splitter", splitter))
        codec = workspace.codec

        def split(document: dict[str, Any]) -> Any:
            try:
                return codec.encode(function(codec.decode(document)))
            except Exception as error:
                raise InvalidInputError(
                    f"The splitter {splitter!r} failed on document {document['_id']!r}: {type(error).__name__}: {error}"
                ) from error

        return split

    def lay_out(
        self,
        semantic_index: str,
        filter: Mapping[str, Any] | None = None,
        *,
        limit: int = 100_000,
        begin: bool = True,
    ) -> Layout:
        """Lay documents out in a plane by UMAP, those near each other that the index finds near, by a job.

        Parameters
        ----------
        semantic_index : str
            Which vectors.
        filter : mapping, optional
            Only documents that match it.
        limit : int, default 100 000
            So many of them, at most.
        begin : bool, default True
            False: where jobs run in this process, the first `wait` runs it, not this call.

        Returns
        -------
        Layout
            The job; its `places()`, when it has ended. They are kept for two weeks. It needs the extra ``map`` where
            jobs run.

        Raises
        ------
        InvalidInputError
            Fewer than three documents match and have a vector: a plane needs three.
        """
        if type(limit) is not int or not 3 <= limit <= _MAX_POINTS:
            raise InvalidInputError(f"limit={limit!r:.80}: it must be a whole number from 3 to {_MAX_POINTS}.")
        workspace, within = self._workspace, self._checked(filter)
        index = workspace.store.get("semantic_index", semantic_index, collection=self.name)
        query = {"$and": [current_outputs(workspace.loader, index), within]}
        count = workspace.store.database[self.name].count_documents(query, limit=limit)
        if count < 3:
            raise InvalidInputError(f"{count} documents match and have a vector: a layout needs three.")
        job = NewJob("layout", f"layout {index.id}", self.name, index.id, {"ids": ["a plane"]}, count)
        LayoutStore(workspace.store.database).plan(job.id, within, limit)
        workspace.jobs.create([job])
        if begin:
            workspace.started({job.name: job.id})
        return Layout(workspace, job.id)

    def layout(self, job: str) -> Layout:
        """Return a layout that was begun before, by its job's identifier."""
        LayoutStore(self._workspace.store.database).run(job)
        return Layout(self._workspace, job)

    def download(self, filter: Mapping[str, Any] | None = None) -> Jobs:
        """Fetch content that is named by URL and not there yet.

        Writes do this by themselves once anything is registered; this is for documents that were there before. What
        failed is not tried again: ``docs.jobs[id].retry()`` does that.

        Parameters
        ----------
        filter : mapping, optional
            Only in documents that match it.

        Returns
        -------
        Jobs
            The one that fetches, and those that compute with what was fetched.
        """
        workspace = self._workspace
        within = self._checked(filter)
        documents = workspace.store.database[self.name]
        total = documents.count_documents(within) if within else documents.estimated_document_count()
        steps = workspace.upkeep(self.name).steps(None, None) if total else []
        work = matching(within), total
        new = new_jobs(steps, self.name, {"download": work, "outputs": work, "neighbours": WHOLE_COLLECTION})
        workspace.jobs.create(list(new.values()))
        return workspace.started({name: job.id for name, job in new.items()})

    def _checked(self, filter: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return a filter as it is to be registered, if MongoDB takes it."""
        try:
            encoded: dict[str, Any] = dict(encoded_filter(self._workspace.codec, dict(filter or {})))
            self._workspace.store.database[self.name].find_one(encoded, {"_id": 1})
        except (OperationFailure, TypeError, ValueError) as error:
            raise InvalidInputError(f"MongoDB refuses filter={filter!r:.80}: {brief(error)}") from None
        return encoded
