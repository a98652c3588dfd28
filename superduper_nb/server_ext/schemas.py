"""What requests look like: checked on the way in, described in the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from bson.timestamp import Timestamp
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from superduper_nb.errors import InvalidInputError
from superduper_nb.server_ext.wire import load, refuse_javascript
from superduper_nb.serving import Body

__all__ = [
    "PATH_PARAMETERS",
    "AskingBody",
    "EventsQuery",
    "JobsNotice",
    "JobsQuery",
    "LoadBody",
    "LogsQuery",
    "NoBody",
    "NoQuery",
    "OneJobQuery",
    "OpenApiQuery",
    "PredictBody",
    "SearchBody",
    "StreamBody",
    "check",
    "check_path",
    "read_asked",
]

MAX_N: Final = 10_000
MAX_QUERIES: Final = 1_000
MAX_EXAMPLES: Final = 100
MAX_INPUTS: Final = 10_000
_SYSTEM: Final = frozenset({"admin", "config", "local"})
_DATABASE: Final = re.compile(r'[^/\\. "$*<>:|?\x00]{1,63}')

M = TypeVar("M", bound=BaseModel)


def _database(name: str) -> str:
    if not _DATABASE.fullmatch(name) or name in _SYSTEM:
        raise ValueError(
            "a database's name has 1 to 63 characters, none of "
            r"""/\. "$*<>:|? , and is not admin, config or local"""
        )
    return name


def _collection(name: str) -> str:
    bad = name.startswith((".", "system.")) or name.endswith(".") or ".." in name or "$" in name or "\x00" in name
    if bad or not 0 < len(name.encode("utf-8", "replace")) <= 200:
        raise ValueError("a collection's name has 1 to 200 bytes, no '$', no empty part, and no 'system.' in front")
    return name


def _filter(value: dict[str, Any]) -> dict[str, Any]:
    try:
        refuse_javascript(value)
    except InvalidInputError as error:
        raise ValueError(str(error).removeprefix("filter: ")) from None
    return value


DatabaseName = Annotated[str, AfterValidator(_database), Field(description="A database's name.")]
CollectionName = Annotated[str, AfterValidator(_collection), Field(description="A collection's name.")]
Identifier = Annotated[
    str,
    Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$", description="A component's name: letters, digits, '_' and '-'."),
]
JobId = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$", description="A job's id.")]

_NUMBERS: Final = {"type": "array", "items": {"type": "number"}}
Vector = Annotated[
    Any,
    WithJsonSchema(
        {
            "description": "A vector or a list of vectors: numbers, or BSON binary vectors (subtype 9, float32).",
            "anyOf": [_NUMBERS, {"type": "array", "items": _NUMBERS}, {"type": "object"}, {"type": "array"}],
        }
    ),
]

_INTEGERS: Final = {"t": {"type": "integer"}, "i": {"type": "integer"}}
ClusterTime = Annotated[
    InstanceOf[Timestamp],
    WithJsonSchema(
        {
            "description": "A BSON timestamp.",
            "type": "object",
            "properties": {"$timestamp": {"type": "object", "properties": _INTEGERS}},
            "required": ["$timestamp"],
        }
    ),
]

PATH_PARAMETERS: Final[dict[str, TypeAdapter[str]]] = {
    "database": TypeAdapter(DatabaseName),
    "collection": TypeAdapter(CollectionName),
    "index": TypeAdapter(Identifier),
    "model": TypeAdapter(Identifier),
    "job": TypeAdapter(JobId),
}


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# Requests


class NoBody(_Body):
    """An empty object, or no body at all."""


class NoQuery(_Query):
    """No parameters."""


Example = Annotated[dict[str, Any], Field(min_length=1)]
Examples = Example | Annotated[list[Example], Field(min_length=1, max_length=MAX_EXAMPLES)]
_QUERIES: Final = ("like", "likes", "vector", "id")
_EXCLUSIVE: Final = ("diversity", "text", "group_by")


def _combinations() -> dict[str, Any]:
    """Describe which fields exclude each other."""
    not_both = [[a, b] for i, a in enumerate(_EXCLUSIVE) for b in _EXCLUSIVE[i + 1 :]]
    not_both += [["text", "min_score"], ["text", "max_score"]]
    not_both += [["likes", name] for name in ("unlike", *_EXCLUSIVE)]
    return {
        "oneOf": [{"required": [name]} for name in _QUERIES],
        "allOf": [{"not": {"required": names}} for names in not_both],
    }


class SearchBody(_Body):
    """Near to what, among which documents, and how many. Exactly one of `like`, `likes`, `vector` and `id`.

    `likes`, or a list of vectors, is a batch: one search for each, with the same options, and at most 100 000 results
    in all. A batch takes none of `unlike`, `diversity`, `text` and `group_by`; of the last three a search takes one.
    """

    model_config = ConfigDict(json_schema_extra=_combinations())

    database: DatabaseName
    collection: CollectionName
    semantic_index: Identifier | None = Field(None, description="Default: the only one of the collection.")
    like: Examples | None = Field(
        None, description="Values for a key of the index, encoded by its model; of several examples, their mean."
    )
    likes: list[Example] | None = Field(None, min_length=1, max_length=MAX_QUERIES, description="A batch of searches.")
    vector: Vector = None
    id: Any = Field(None, description="A document's `_id`: its stored vector is the query.")
    unlike: Examples | None = Field(None, description="Examples to stay away from (Rocchio: 2 p - q).")
    filter: Annotated[dict[str, Any], AfterValidator(_filter)] | None = Field(None, description="A MongoDB filter.")
    n: int = Field(10, ge=1, le=MAX_N, description="How many documents.")
    exact: bool = Field(False, description="Compare with every vector.")
    min_score: float | None = Field(None, allow_inf_nan=False, description="Leave out what scores less.")
    max_score: float | None = Field(None, allow_inf_nan=False, description="Leave out what scores more.")
    diversity: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="Maximal marginal relevance, lambda = 1 - diversity."
    )
    text: str | None = Field(
        None, pattern=r"\S", description="Words for MongoDB's text search, fused with nearness by reciprocal ranks."
    )
    group_by: str | None = Field(
        None,
        pattern=r"^[^.$\x00][^.\x00]*(\.[^.$\x00][^.\x00]*)*$",
        description="A field: the best document of each of its values.",
    )
    after: ClusterTime | None = Field(None, description="See at least the writes up to this cluster time.")
    untested: bool = Field(
        False,
        description="Candidates will do that are not tested against the filter; the reply says whether it holds those. "
        "The first `n` of them that match are the answer; where fewer match, ask again without this.",
    )

    @model_validator(mode="after")
    def _one_query(self) -> SearchBody:
        if sum(getattr(self, name) is not None for name in _QUERIES) != 1:
            raise ValueError("give exactly one of like, likes, vector and id")
        return self


class AskingBody(_Body):
    """What the model server is asked."""

    def asked(self) -> Body:
        """Return it as the model server takes it."""
        raise NotImplementedError


class PredictBody(AskingBody):
    """What to apply a model to."""

    inputs: list[Any] = Field(min_length=1, max_length=MAX_INPUTS, description="One element for each prediction.")
    version: int | None = Field(None, ge=0, description="Default: the current version.")
    errors: Literal["raise", "return"] = Field(
        "raise", description="When the model fails on single inputs: 422, or `_error` in the place of their outputs."
    )

    def asked(self) -> Body:
        """Return it as the model server takes it."""
        return Body(self.inputs, self.version, self.errors)


class StreamBody(AskingBody):
    """What to apply a model to that yields its output."""

    input: Any = Field(description="One input.")
    version: int | None = Field(None, ge=0, description="Default: the current version.")

    def asked(self) -> Body:
        """Return it as the model server takes it."""
        return Body([self.input], self.version)


class LoadBody(AskingBody):
    """How to warm a model up."""

    example: Any = Field(None, description="An input that the model is applied to once, so that nothing is new to it.")

    def asked(self) -> Body:
        """Return it as the model server takes it."""
        return Body([] if self.example is None else [self.example])


class JobsNotice(_Body):
    """Where new jobs were written."""

    database: DatabaseName


class OpenApiQuery(_Query):
    """Whose models to describe."""

    db: DatabaseName | None = Field(None, description="Describe the models of this database, with their types.")


class JobsQuery(_Query):
    """Which jobs."""

    db: DatabaseName
    status: Literal["pending", "running", "succeeded", "failed", "cancelled", "blocked"] | None = None
    since: JobId | None = Field(None, description="The `next` of the page before.")
    limit: int = Field(100, ge=1, le=1000)


class OneJobQuery(_Query):
    """The database of a job."""

    db: DatabaseName


class LogsQuery(_Query):
    """Which lines."""

    db: DatabaseName
    since: int = Field(0, ge=0, description="The first line wanted; `next` of the page before.")


class EventsQuery(_Query):
    """Which events."""

    since: int = Field(0, ge=-1, description="The `next` of the page before; 0 for all that are held, -1 for none.")


# Checks


def check(model: type[M], value: Mapping[str, Any]) -> M:
    """Return a checked body or query.

    Raises
    ------
    InvalidInputError
        Names the field, what is allowed and what was given.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InvalidInputError(_said(error)) from None


def read_asked(model: type[AskingBody], content_type: str, data: bytes) -> Body:
    """Return what bytes ask the model server for; see `wire.load` and `check` for what is raised."""
    return check(model, load(data, content_type) if data else {}).asked()


def check_path(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the checked names of a path."""
    for name, value in parameters.items():
        try:
            PATH_PARAMETERS[name].validate_python(value)
        except ValidationError as error:
            raise InvalidInputError(_said(error, name)) from None
    return dict(parameters)


def _said(error: ValidationError, name: str = "") -> str:
    """Say the first thing that is wrong, and how many more there are."""
    errors = error.errors(include_url=False, include_context=False)
    first = errors[0]
    field = ".".join(map(str, first["loc"])) or name
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] in ("missing", "extra_forbidden") else f" (given: {_short(first['input'])})"
    more = f" And {len(errors) - 1} more." if len(errors) > 1 else ""
    return f"{field or 'body'}: {message}{given}.{more}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
