"""The engines' life inside the server: started and closed in a thread, never on the event loop."""

from __future__ import annotations

import asyncio
import gc
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from logging import Logger
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from superduper_nb.errors import ConfigError, ServiceError, SuperduperError
from superduper_nb.server_ext.failures import ApiError, redact
from superduper_nb.server_ext.metrics import READY

if TYPE_CHECKING:
    from superduper_nb.jobs import JobStore
    from superduper_nb.search import SearchReply, SearchRequest
    from superduper_nb.services import Services
    from superduper_nb.serving import Body, Form, Prediction, Stream, UnreadBody

    class ServerServices(Services, Protocol):
        """What the server needs of the engines beyond the seam: the address kernels get, and the job records."""

        @property
        def mongo_uri(self) -> str:
            """The MongoDB in use, with credentials."""
            ...

        def databases(self) -> list[str]:
            """List the databases that hold components or jobs."""
            ...

        def ask(
            self, database: str, model: str, body: Body | UnreadBody, *, form: Form, timeout: float
        ) -> Future[Prediction]:
            """Have a model applied; see `ModelServer.ask`."""
            ...

        def open(self, database: str, model: str, body: Body | UnreadBody, *, form: Form, timeout: float) -> Stream:
            """Have a model's output yielded; see `ModelServer.open`."""
            ...

        def search_each(self, requests: Sequence[SearchRequest]) -> list[SearchReply | Exception]:
            """Answer requests that go together; see `SearchEngine.search_each`."""
            ...

        def index_figures(self) -> list[dict[str, Any]]:
            """Return what each index did and how it is, in numbers; see `SearchEngine.figures`."""
            ...

        def model_figures(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
            """Return what the model server says about each model, and about itself."""
            ...

        def jobs(self, database: str) -> JobStore:
            """Return the job records of a database."""
            ...


__all__ = ["Engine", "State"]

State = Literal["starting", "ready", "failed", "stopped"]

_AGAIN_AFTER_S: Final = 15.0


class Engine:
    """Starts the engines, waits for them, closes them.

    Parameters
    ----------
    build : callable
        Starts the engines and returns them; blocks, is called in a thread.
    on_ready : callable
        Called in that thread before anyone is told that they are ready.
    log : logging.Logger
        Where a failed start is reported in full.
    """

    def __init__(
        self, build: Callable[[], ServerServices], *, on_ready: Callable[[ServerServices], None], log: Logger
    ) -> None:
        self._build = build
        self._on_ready = on_ready
        self._log = log
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="superduper-engine")
        self._task: asyncio.Task[None] | None = None
        self._services: ServerServices | None = None
        self._ended = 0.0
        self.state: State = "starting"
        self.failure: SuperduperError | None = None

    @property
    def ready(self) -> ServerServices | None:
        """The engines, where they are up."""
        return self._services if self.state == "ready" else None

    def start(self) -> None:
        """Begin to start the engines; returns at once."""
        self.state, self.failure = "starting", None
        self._task = asyncio.get_running_loop().create_task(self._start())

    async def services(self, wait: float = 0.0) -> ServerServices:
        """Return the engines, after at most `wait` seconds.

        A start that failed is tried again when a request comes a while later: MongoDB may be there by then.

        Raises
        ------
        ApiError
            They did not start: 424, which a new try alone does not mend.
        ServiceError
            They are not up yet, or stopped.
        """
        self.try_again()
        if self.state == "starting" and self._task is not None and wait:
            await asyncio.wait({self._task}, timeout=wait)
        if (services := self.ready) is not None:
            return services
        if self.failure is not None:
            raise _not_started(self.failure)
        raise ServiceError(f"The engines are {self.state}: try again in a few seconds.")

    def try_again(self) -> None:
        """Start again if the last start failed for a reason that may have passed, and that was a while ago."""
        if (
            self.state == "failed"
            and not isinstance(self.failure, ConfigError)
            and time.monotonic() - self._ended > _AGAIN_AFTER_S
        ):
            self.start()

    def _fail(self, error: SuperduperError) -> None:
        self.state, self.failure, self._ended = "failed", error, time.monotonic()

    async def stop(self) -> None:
        """Close the engines; a start under way is let to its end first, so that nothing of it is left."""
        self.state = "stopped"
        READY.set(0)
        if self._task is not None:
            await asyncio.wait({self._task})
        services, self._services = self._services, None
        if services is not None:
            await self._in_thread(lambda: self._close(services))
        self._thread.shutdown(wait=False)

    async def _start(self) -> None:
        try:
            services = await self._in_thread(self._open)
        except SuperduperError as error:
            self._log.error("The engines did not start: %s", error)
            self._fail(error)
            return
        except Exception as error:
            self._log.error("The engines did not start:\n%s", redact(traceback.format_exc()))
            self._fail(ServiceError(f"The engines did not start ({type(error).__name__}): see the server's log."))
            return
        gc.freeze()  # a full collection that looks at all that was imported holds every request up for 0.1 s and more
        self._services = services
        if self.state == "starting":  # and not stopped meanwhile
            self.state = "ready"
            READY.set(1)

    def _open(self) -> ServerServices:
        services = self._build()
        try:
            self._on_ready(services)
        except BaseException:
            services.close()
            raise
        return services

    def _close(self, services: ServerServices) -> None:
        try:
            services.close()
        except Exception:  # the server has more to close than us
            self._log.error("The engines did not close in order:\n%s", redact(traceback.format_exc()))

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _not_started(failure: SuperduperError) -> ApiError:
    """Return the answer while the start has failed: what requests depend on is wrong, and a person must look."""
    again = None if isinstance(failure, ConfigError) else _AGAIN_AFTER_S
    return ApiError(424, str(failure), code=failure.code, retry_after=again)
