"""What replies look like, as the OpenAPI document describes them; more fields may come with time."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "DatabasesReply",
    "ErrorReply",
    "EventsReply",
    "IndexReply",
    "IndexesReply",
    "JobReply",
    "JobsReply",
    "LoadReply",
    "LogsReply",
    "ModelsReply",
    "NoticeReply",
    "OpenApiReply",
    "PredictReply",
    "SearchReply",
    "StatusReply",
    "UnloadReply",
]


class _Reply(BaseModel):
    model_config = ConfigDict(extra="allow")


class ErrorReply(_Reply):
    """What went wrong. `code` is stable, `message` is for people."""

    message: str
    reason: str
    code: str


class StatusReply(_Reply):
    """The state of this server's engines."""

    state: Literal["starting", "ready", "failed", "stopped"]
    error: str | None
    version: str
    pid: int
    instance: str
    components: dict[str, Any] = Field(description="State, version and address of each; never a secret.")


class DatabasesReply(_Reply):
    """The databases that hold components or jobs."""

    databases: list[str]


class SearchReply(_Reply):
    """What was found, best first. Of a batch, `ids`, `scores` and `distances` hold one list for each query."""

    ids: list[Any]
    scores: list[Any]
    distances: list[Any] | None
    strategy: str = Field(description="How it was searched.")
    candidates: int = Field(description="Vectors scored, or documents tested against the filter.")
    survivors: int = Field(description="Those of them that match the filter.")
    pending: int = Field(description="Documents whose outputs queued jobs have still to compute.")
    took_ms: float
    stages_ms: dict[str, float] = Field(description="Parts of it: encode, search, filter, text, group.")
    index: str
    partial: bool = Field(description="Shards are being loaded again: what they hold was not found.")
    untested: bool = Field(description="They are candidates, more than `n`: which of them match is still to be asked.")


class IndexReply(_Reply):
    """One index: size, dimension, state, freshness."""

    database: str
    collection: str
    id: str


class IndexesReply(_Reply):
    """The indexes in memory."""

    indexes: list[IndexReply]


class ModelsReply(_Reply):
    """The models of a database, and which of them are loaded."""

    models: list[dict[str, Any]]


class PredictReply(_Reply):
    """One output for each input; where it was asked for, `{"_error": {"type", "message"}}` for one that failed."""

    outputs: list[Any]
    version: int
    took_ms: float


class LoadReply(_Reply):
    """The model is in memory."""

    version: int
    took_ms: float


class UnloadReply(_Reply):
    """The model is not in memory."""

    model: str


class JobReply(_Reply):
    """The record of a job."""

    id: str = Field(alias="_id")
    kind: str
    name: str
    state: str


class JobsReply(_Reply):
    """Jobs, newest first."""

    jobs: list[JobReply]
    next: str | None = Field(description="Give it as `since` for the next page; null on the last.")


class LogsReply(_Reply):
    """What a job printed."""

    lines: list[dict[str, Any]]
    next: int


class NoticeReply(_Reply):
    """The notice was passed on."""

    database: str


class OpenApiReply(_Reply):
    """An OpenAPI document."""

    openapi: str


class EventsReply(_Reply):
    """Job and index events, oldest first."""

    events: list[dict[str, Any]]
    next: int
    missed: bool = Field(description="Some are no longer held: read the records instead.")
