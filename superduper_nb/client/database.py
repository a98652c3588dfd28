"""``Database``: pymongo's, with registries of what was registered in it and verbs that register more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import pymongo.database
from pymongo.typings import _DocumentType

from superduper_nb.client.builtin import builtin
from superduper_nb.client.jobs import JobList, Jobs
from superduper_nb.client.optimizing import examples_for, measured
from superduper_nb.client.registered import Registered
from superduper_nb.components.store import Component, Kind, check_identifier
from superduper_nb.errors import InvalidInputError, did_you_mean, stoppable
from superduper_nb.models.apply import check_batch_size, check_device, check_model, check_resources
from superduper_nb.models.optimize import check_optimize
from superduper_nb.models.signature import signature

if TYPE_CHECKING:
    from superduper_nb.client.client import Client
    from superduper_nb.client.collection import Collection
    from superduper_nb.client.workspace import Workspace
    from superduper_nb.models.optimize import Optimize
    from superduper_nb.serving import Errors

__all__ = ["Database"]

log = logging.getLogger(__name__)


class Database(pymongo.database.Database[_DocumentType]):
    """A `pymongo.database.Database` in which models, types and measures can be registered.

    Attributes
    ----------
    models, types, measures, losses, metrics, splitters, functions, trainers : Registry
        What is registered: mappings by name.
    jobs : JobList
        The recorded jobs.
    """

    @property
    def _workspace(self) -> Workspace:
        return cast("Client[Any]", self.client)._workspace(self.name)

    @classmethod
    def _of(cls, database: pymongo.database.Database[Any]) -> Database[Any]:
        return cls(
            database.client,
            database.name,
            database.codec_options,
            database.read_preference,
            database.write_concern,
            database.read_concern,
        )

    # --- what is registered ----------------------------------------------------------------------------------------

    models = Registered("model", "The models.")
    types = Registered("type", "The types registered here (the built-in ones are not listed).")
    measures = Registered("measure", "The measures registered here (``cosine``, ``dot`` and ``l2`` are built in).")
    losses = Registered("loss", "The losses.")
    metrics = Registered("metric", "The metrics.")
    splitters = Registered("splitter", "The splitters.")
    functions = Registered("function", "The functions.")
    trainers = Registered("trainer", "The trainers.")

    @property
    def jobs(self) -> JobList:
        """The recorded jobs, newest first."""
        return JobList(self._workspace)

    # --- registering -------------------------------------------------------------------------------------------------

    def create_model(
        self,
        id: str,
        obj: Any,
        *,
        preprocess: Callable[[Any], Any] | None = None,
        postprocess: Callable[[Any], Any] | None = None,
        type: str | None = None,
        batch_size: int | None = None,
        device: str = "auto",
        resources: Mapping[str, float] | None = None,
        optimize: Optimize | None = None,
        examples: Sequence[Any] | None = None,
    ) -> Jobs:
        """Register a model; a new version of it where the name is taken by one with other content.

        Parameters
        ----------
        id : str
            Its name.
        obj : torch.nn.Module, sklearn estimator, callable or object
            What is applied (see `superduper_nb.Predictor`). Code defined in the notebook is stored with it.
        preprocess, postprocess : callable, optional
            Applied to each input before, and to each row after; default: the methods of these names on `obj`.
        type : str, optional
            How outputs are stored: ``"vector"`` for embeddings. Default: by their class.
        batch_size : int, optional
            Inputs a batch.
        device : str, default "auto"
            A torch device; "auto" takes the GPU where there is one. One that this machine lacks is refused, unless
            models may run on another: with `resources`, on an external Dask cluster, in a far notebook server. There
            the job says so.
        resources : mapping of str to float, optional
            Apply it only in workers that have these (``{"GPU": 1}``), as Dask's ``--resources`` or ``jobs.resources``
            of the settings say, and in no more of them at one time than they suffice for.
        optimize : {"compile", "int8", "bf16"}, optional
            Apply a quicker variant of a torch module, wherever it runs: compiled (needs a C++ compiler there), with
            weights of 8 bits (needs the extra ``int8``), or in bfloat16. It is compared with the plain model first:
            ``models.describe(id)["optimized"]`` says how far its outputs are from those.
        examples : list, optional
            With `optimize`: inputs to compare by. Default: of documents that a watcher applies the model to.

        Returns
        -------
        Jobs
            Those that recompute what depends on the model; none for a new name, those under way for the same content.

        Raises
        ------
        InvalidInputError
            A bad name, an unknown type, an object that is no model or can't be stored; there is no such variant of it,
            or no such device.
        """
        check_identifier("A model", id)
        check_model(obj)
        workspace = self._workspace
        known = workspace.loader.codec().type_ids
        if type is not None and type not in known:
            raise InvalidInputError(f"No type is called {type!r}.{did_you_mean(type, known)}")
        check_batch_size(batch_size)
        check_device(obj, device, here=self._workspace.client._models_here and not resources)
        if examples is not None and optimize is None:
            raise InvalidInputError("examples= are what optimize= compares by: give both, or neither.")
        steps = {"preprocess": preprocess, "postprocess": postprocess}
        bundle: dict[str, Any] = {"object": obj, **steps}
        definition: dict[str, Any] = {"type": type, "batch_size": batch_size, "device": device}
        if resources:
            definition["resources"] = check_resources(resources)
        notes: dict[str, Any] = {"signature": signature(obj, preprocess, postprocess)}
        if optimize is not None:
            check_optimize(obj, optimize)
            definition["optimize"], bundle["examples"] = optimize, examples_for(workspace, id, examples)
            options = {**steps, "batch_size": batch_size, "device": device}
            notes["optimized"] = measured(obj, optimize, bundle["examples"], **options)
        model, new = workspace.store.put("model", id, definition, obj=bundle, notes=notes)
        workspace.changed()
        if new:
            _warn_of_training(workspace, model)
        watchers = workspace.dependents(model) if model.version > 1 else []
        return workspace.started(workspace.backfill(watchers) if new else workspace.underway(watchers))

    def create_type(self, id: str, obj: Any) -> Jobs:
        """Register a type: an object with ``encode(x) -> bytes``, ``decode(bytes) -> x`` and, optionally, ``types``."""
        if not (callable(getattr(obj, "encode", None)) and callable(getattr(obj, "decode", None))):
            raise InvalidInputError(f"A type needs encode(x) and decode(bytes); {obj!r:.80} lacks one of them.")
        return self._put("type", id, obj)

    def create_measure(self, id: str, obj: Callable[[Any, Any], Any]) -> Jobs:
        """Register a measure: ``(queries (m, d), vectors (n, d)) -> scores (m, n)``, higher is nearer."""
        return self._put_callable("measure", id, obj, "(queries, vectors)")

    def create_loss(self, id: str, obj: Callable[..., Any]) -> Jobs:
        """Register a loss: ``(outputs, targets) -> tensor``, lower is better."""
        return self._put_callable("loss", id, obj, "(outputs, targets)")

    def create_metric(self, id: str, obj: Callable[..., Any]) -> Jobs:
        """Register a metric: ``(outputs, targets) -> float``."""
        return self._put_callable("metric", id, obj, "(outputs, targets)")

    def create_splitter(self, id: str, obj: Callable[[Any], Any]) -> Jobs:
        """Register a splitter: ``document -> (query part, document part)``."""
        return self._put_callable("splitter", id, obj, "a document")

    def create_function(self, id: str, obj: Callable[..., Any]) -> Jobs:
        """Register a function of any kind, to be loaded elsewhere: ``db.functions[id]``."""
        return self._put_callable("function", id, obj, "anything")

    def create_trainer(self, id: str, obj: Callable[..., Any]) -> Jobs:
        """Register a trainer, or a class of them."""
        return self._put_callable("trainer", id, obj, "a learning task")

    def _put_callable(self, kind: Kind, id: str, obj: Any, of: str) -> Jobs:
        if not callable(obj):
            raise InvalidInputError(f"A {kind} is a function of {of}; {obj!r:.80} can't be called.")
        return self._put(kind, id, obj)

    def _put(self, kind: Kind, id: str, obj: Any) -> Jobs:
        check_identifier(f"A {kind}", id)
        if id in builtin(kind):
            raise InvalidInputError(f"The {kind} {id!r} is built in: give yours another name.")
        self._workspace.store.put(kind, id, {}, obj=obj)
        self._workspace.changed()
        return Jobs(self._workspace, {})

    # --- using --------------------------------------------------------------------------------------------------------

    def predict(self, model: str, x: Any, *, version: int | None = None) -> Any:
        """Apply a registered model to one input, in the model server.

        Raises
        ------
        NotFoundError
            No such model, or version.
        ModelError
            The model raised.
        """
        return self.predict_many(model, [x], version=version)[0]

    def predict_many(
        self, model: str, xs: Sequence[Any], *, version: int | None = None, errors: Errors = "raise"
    ) -> list[Any]:
        """Apply a registered model to many inputs; the same outputs as the model applied locally, in order.

        Parameters
        ----------
        version : int, optional
            A fixed version of the model. Default: the current one.
        errors : {"raise", "return"}
            When the model fails on some inputs: raise `ModelError`, or return an `ItemError` in the place of each.
        """
        inputs = _listed(xs)
        with stoppable("The prediction"):
            outputs: list[Any] = self._workspace.services.predict(self.name, model, inputs, version, errors).outputs
        return outputs

    async def apredict(self, model: str, x: Any, *, version: int | None = None) -> Any:
        """Do as `predict`, without holding up the event loop; what is asked for at the same time shares batches."""
        (output,) = await self.apredict_many(model, [x], version=version)
        return output

    async def apredict_many(
        self, model: str, xs: Sequence[Any], *, version: int | None = None, errors: Errors = "raise"
    ) -> list[Any]:
        """Do as `predict_many`, without holding up the event loop."""
        asked = self._workspace.services.submit(self.name, model, _listed(xs), version=version, errors=errors)
        outputs: list[Any] = (await asyncio.wrap_future(asked)).outputs
        return outputs

    def predict_stream(self, model: str, x: Any, *, version: int | None = None) -> Iterator[Any]:
        """Yield what a model yields for one input (it is a generator function), as it comes.

        Closing the iterator, or leaving it, ends the model's generator. What no generator is yields its one output.
        """
        with stoppable("The prediction"):
            yield from self._workspace.services.stream(self.name, model, x, version)

    async def apredict_stream(self, model: str, x: Any, *, version: int | None = None) -> AsyncIterator[Any]:
        """Do as `predict_stream`, without holding up the event loop."""
        pieces, end = self.predict_stream(model, x, version=version), object()
        while (piece := await asyncio.to_thread(next, pieces, end)) is not end:
            yield piece

    def load_model(self, model: str, *, example: Any = None) -> None:
        """Have the model server load a model before it is needed, and apply it to an example: a first time is slow."""
        self._workspace.services.load_model(self.name, model, example)

    def unload_model(self, model: str) -> None:
        """Have the model server drop a model from memory; the next request loads it again."""
        self._workspace.services.unload_model(self.name, model)

    def watch_job(self, id: str) -> None:
        """Print what a job says until it ends."""
        from superduper_nb.client.watching import watch

        watch(self.jobs[id])

    # --- the same as pymongo's, but of our classes ------------------------------------------------------------

    def __getitem__(self, name: str) -> Collection[_DocumentType]:
        from superduper_nb.client.collection import Collection

        return Collection(self, name)

    def get_collection(self, name: str, *args: Any, **kwargs: Any) -> Collection[_DocumentType]:
        """Return a collection with options, as pymongo does; of our class."""
        from superduper_nb.client.collection import Collection

        return Collection(self, name, False, *args, **kwargs)

    def create_collection(self, name: str, *args: Any, **kwargs: Any) -> Collection[_DocumentType]:
        """Create a collection, as pymongo does; of our class."""
        made = super().create_collection(name, *args, **kwargs)
        return self.get_collection(
            name, made.codec_options, made.read_preference, made.write_concern, made.read_concern
        )

    def with_options(self, *args: Any, **kwargs: Any) -> Database[Any]:
        """Return the same database with other options, as pymongo does; of our class."""
        return self._of(super().with_options(*args, **kwargs))


def _warn_of_training(workspace: Workspace, model: Component) -> None:
    """Say that a version that was trained is the current one no longer: the cell may just have drawn other weights."""
    before = workspace.store.find("model", model.id, version=model.version - 1) if model.version > 1 else None
    if before is not None and before.origin is not None and before.origin["by"] is not None:
        log.warning(
            "%s: version %d takes the place of version %d, which %s had trained. docs.models.rollback(%r, %d) brings "
            "that back. Weights drawn at random are other content each time: torch.manual_seed(0) before them.",
            *(model.id, model.version, before.version, before.origin["by"], model.id, before.version),
        )


def _listed(xs: Any) -> list[Any]:
    """Return inputs as a list; a text is one input, not one for each letter."""
    if isinstance(xs, (str, bytes, Mapping)) or hasattr(xs, "to_dict"):
        raise InvalidInputError(
            f"predict_many takes a list of inputs; given a {type(xs).__name__}, which predict takes."
        )
    return list(xs)
