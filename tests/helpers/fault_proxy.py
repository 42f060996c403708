"""A proxy before a store's server, which delays, breaks off, shortens or refuses answers.

It forwards bytes of HTTP/1.1 connections and looks only at the first line of each request. Clients reuse a connection,
so after a fault it is closed.
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Lock, Thread

REFUSAL = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>reduce your request rate</Message></Error>"


@dataclass
class Faults:
    """What goes wrong from now on, with the requests that `affects` chooses by their first line.

    Attributes:
        refused: How many of the next requests get the answer 503 SlowDown.
        broken: How many of the next answers end after half of what a first block has, with the connection.
        seconds: The delay before each answer to them.
        down: Whether connections are closed without an answer.
        on_request: Called with the first line of each request.
        requests: The first lines of all requests.
    """

    affects: Callable[[str], bool] = lambda line: True
    refused: int = 0
    broken: int = 0
    seconds: float = 0.0
    down: bool = False
    on_request: Callable[[str], None] = lambda line: None
    requests: list[str] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def take(self, name: str, line: str) -> bool:
        with self.lock:
            left: int = getattr(self, name)
            if left == 0 or not self.affects(line):
                return False
            setattr(self, name, left - 1)
            return True


@contextmanager
def fault_proxy(port: int) -> Iterator[tuple[str, Faults]]:
    """Serve the server at `port` of this machine through a proxy; yields its address and its faults."""
    faults = Faults()
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with suppress(OSError):  # the listener is closed at the end
            while True:
                client, _ = listener.accept()
                Thread(target=_serve, args=(client, port, faults), daemon=True).start()

    Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", faults
    finally:
        listener.close()


def _serve(client: socket.socket, port: int, faults: Faults) -> None:
    with client, suppress(OSError):
        while request := _head(client):
            line = request.partition(b"\r\n")[0].decode()
            faults.requests.append(line)
            faults.on_request(line)
            if faults.down:
                return
            body_bytes = _length(request)
            if faults.take("refused", line):
                _discard(client, body_bytes, request)
                head = f"HTTP/1.1 503 Slow Down\r\nContent-Length: {len(REFUSAL)}\r\nConnection: close\r\n\r\n"
                client.sendall(head.encode() + (b"" if line.startswith("HEAD") else REFUSAL))
                return
            time.sleep(faults.seconds if faults.affects(line) else 0)
            with socket.create_connection(("127.0.0.1", port)) as server:
                server.sendall(_closing(request))
                if b"100-continue" in request.lower():
                    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                _copy(client, server, body_bytes)
                answer = server.recv(1 << 16)
                if faults.take("broken", line):
                    client.sendall(answer[: max(len(answer) - 100, len(answer) // 2)])
                    return
                while answer:
                    client.sendall(answer)
                    answer = server.recv(1 << 16)
            return  # the server closed its side, because the request asked for that


def _head(client: socket.socket) -> bytes:
    """Read a request up to the end of its headers."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = client.recv(1)
        if not piece:
            return b""
        head += piece
    return head


def _closing(request: bytes) -> bytes:
    first, _, rest = request.partition(b"\r\n")
    lines = [line for line in rest.split(b"\r\n") if not line.lower().startswith((b"connection:", b"expect:"))]
    return b"\r\n".join([first, b"Connection: close", *lines])


def _length(request: bytes) -> int:
    for line in request.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def _copy(client: socket.socket, server: socket.socket, count: int) -> None:
    while count and (piece := client.recv(min(count, 1 << 16))):
        server.sendall(piece)
        count -= len(piece)


def _discard(client: socket.socket, count: int, request: bytes) -> None:
    if b"100-continue" not in request.lower():
        while count and (piece := client.recv(min(count, 1 << 16))):
            count -= len(piece)
