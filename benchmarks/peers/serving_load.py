"""A closed loop of clients, in a process of its own: ``serving_load.py URL BODIES CLIENTS SECONDS [HEADER VALUE]``.

Prints one line of JSON: answers a second, percentiles in ms, and what was not answered with 200. Written on asyncio's
bare protocols, because it shares two cores with what it measures.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

Samples = list[tuple[float, float]]


class Client(asyncio.Protocol):
    """Sends a request, reads the answer, sends the next one."""

    def __init__(self, requests: Iterator[bytes], end: float, samples: Samples, wrong: Counter[int]) -> None:
        self._requests, self._end = requests, end
        self._samples, self._wrong = samples, wrong
        self._buffer = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._at = time.perf_counter()
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self._buffer += data
        if (size := _size(self._buffer)) is None or len(self._buffer) < size:
            return
        now = time.perf_counter()
        if (status := int(self._buffer[9:12])) != 200:
            self._wrong[status] += 1
        else:
            self._samples.append((now, now - self._at))
        self._buffer = self._buffer[size:]
        if now < self._end:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, or count a broken connection."""
        self._wrong[0] += exc is not None
        self.done.set_result(None)


def _size(buffer: bytes) -> int | None:
    """Return the length of the answer at the start of a buffer; None where that can't be said yet."""
    head_end = buffer.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    head = buffer[:head_end].lower()
    if (at := head.find(b"content-length:")) >= 0:
        return head_end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])
    end = buffer.find(b"0\r\n\r\n", head_end)  # in chunks
    return None if end < 0 else end + 5


async def main(url: str, bodies: list[str], clients: int, seconds: float, headers: dict[str, str]) -> dict[str, object]:
    """Run the clients; a third of a second is left out at the start."""
    parts = urlsplit(url)
    assert parts.hostname
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    requests = itertools.cycle([f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode() for body in bodies])
    begin = time.perf_counter() + 0.3
    samples: Samples = []
    wrong: Counter[int] = Counter()
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(
            lambda: Client(requests, begin + seconds, samples, wrong), parts.hostname, parts.port
        )
        for _ in range(clients)
    ]
    await asyncio.gather(*(client.done for _, client in made))
    times = sorted(took for when, took in samples if begin < when <= begin + seconds)
    ms = [round(1000 * times[int(q * (len(times) - 1))], 2) for q in (0.5, 0.99)] if times else [0.0, 0.0]
    return {"rate": len(times) / seconds, "p50": ms[0], "p99": ms[1], "answers": len(samples), "wrong": dict(wrong)}


if __name__ == "__main__":
    url, bodies, clients, seconds, *header = sys.argv[1:]
    given = dict([header]) if header else {}
    print(json.dumps(asyncio.run(main(url, json.loads(bodies), int(clients), float(seconds), given))))
