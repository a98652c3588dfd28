"""A load of requests over several connections, at next to no cost: whoever answers shares the cores with it.

One loop over plain sockets that sends bytes made before and looks for the end of each answer: no tasks, no futures, no
parser. It belongs in a process of its own, so that it shares neither interpreter nor garbage with anything.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Load", "load"]

_OK = b"HTTP/1.1 200 "
_LENGTH = b"\r\ncontent-length: "


@dataclass
class Load:
    """What came of it.

    Attributes
    ----------
    taken : list of float
        How long each request took, in seconds.
    seconds : float
        How long it took as a whole.
    answers : dict
        The body of the last answer to each of the requests.
    cpu : float
        Seconds of a processor that it took itself.
    """

    taken: list[float]
    seconds: float
    answers: dict[int, bytes]
    cpu: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.taken) / self.seconds


def load(address: tuple[str, int], requests: Sequence[bytes], connections: int, seconds: float) -> Load:
    """Send requests over so many connections, on each the next when the last was answered.

    Raises
    ------
    AssertionError
        An answer has another status than 200, or a connection ended.
    """
    begin, cpu = time.perf_counter(), time.process_time()
    taken: list[float] = []
    answers: dict[int, bytes] = {}
    with selectors.DefaultSelector() as selector:
        for i in range(min(connections, len(requests))):
            each = _Connection(address, requests, i, connections)
            selector.register(each.socket, selectors.EVENT_READ, each)
        while selector.get_map():
            for key, _ in selector.select():
                each = key.data
                if (body := each.received()) is None:
                    continue
                now = time.perf_counter()
                taken.append(now - each.sent)
                answers[each.which] = body
                if now < begin + seconds:
                    each.send_next()
                else:
                    selector.unregister(each.socket)
                    each.socket.close()
    return Load(taken, time.perf_counter() - begin, answers, time.process_time() - cpu)


class _Connection:
    """Sends one request after the other, each `step` behind the last."""

    def __init__(self, address: tuple[str, int], requests: Sequence[bytes], first: int, step: int) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._requests, self._step, self.which = requests, step, first
        self._send()

    def send_next(self) -> None:
        self.which = (self.which + self._step) % len(self._requests)
        self._send()

    def _send(self) -> None:
        self._got = b""
        self.sent = time.perf_counter()
        self.socket.sendall(self._requests[self.which])

    def received(self) -> bytes | None:
        """Return the body of the answer; None while some of it is to come."""
        part = self.socket.recv(1 << 20)
        assert part, "the connection ended"
        self._got += part
        head = self._got.find(b"\r\n\r\n")
        if head < 0:
            return None
        said = self._got[:head].lower()
        assert self._got.startswith(_OK), said
        length = int(said.partition(_LENGTH)[2].partition(b"\r\n")[0])
        return self._got[head + 4 :] if len(self._got) == head + 4 + length else None
