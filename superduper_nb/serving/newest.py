"""Which version of a model is the newest: known for a tenth of a second, unless we are told that there is a new one.

Of a slow model it is asked for in this process, while the model runs. In the models' process the question would hold
the interpreter, which the model wants, too; the model has emptied the processor's caches, so that it takes a
millisecond.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from superduper_nb.components.lately import Lately
from superduper_nb.errors import NotFoundError
from superduper_nb.serving.values import Current

__all__ = ["Newest"]

log = logging.getLogger(__name__)

_PATIENCE_S: Final = 2.0
_ASK_AGAIN_S: Final = 5.0


class Newest:
    """Keeps newest versions for a moment, and asks for them in a thread. Belongs to one event loop.

    Parameters
    ----------
    current : callable
        See `superduper_nb.serving.values`.
    """

    def __init__(self, current: Current) -> None:
        self._current = current
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="superduper-newest")
        self._ask_at = 0.0
        self._known: dict[tuple[str, str], tuple[int, float]] = {}
        self._lately = Lately()

    def lately(self, name: tuple[str, str]) -> int | None:
        """Return the version that was the newest a moment ago; None where it is to be asked for."""
        version, at = self._known.get(name, (None, 0.0))
        return version if self._lately.counts(name[0], at) else None

    def note(self, name: tuple[str, str], version: int, at: float) -> None:
        """Hear of a version that was the newest after `at`."""
        self._known[name] = version, at

    def tell(self, database: str) -> None:
        """Say, in any thread, that something was registered in a database or deleted there."""
        self._lately.tell(database)

    async def is_newest(self, name: tuple[str, str], version: int) -> bool:
        """Say whether a version of a model is still the newest; where nobody can say, it counts."""
        if time.monotonic() < self._ask_at:
            return True
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await asyncio.get_running_loop().run_in_executor(self._thread, self._current, *name) == version
        except NotFoundError:
            return False
        except Exception as error:
            self._ask_at = time.monotonic() + _ASK_AGAIN_S  # or each batch would wait for a database that is away
            log.warning("Serving %s.%s version %d: can't ask for a newer one (%r)", *name, version, error)
            return True

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
