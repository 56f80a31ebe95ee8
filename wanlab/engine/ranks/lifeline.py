"""Whether the other processes of a job are alive: told by the operating system, not by a clock.

Every process holds a connection to rank 0 and waits on it in a thread of its own. A connection that ends without a
farewell is a process that died, however it died; that is known within milliseconds, while the main thread may be in a
collective that would wait for an hour. A machine that vanishes is found by keepalive.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

VANISHED = 30  # seconds until a machine that says nothing any more is taken to be gone
PROBES = 3
JOINING = 60.0  # seconds to connect in
FAREWELL = 5.0  # seconds that rank 0 waits for the others to be gone
GO_ON = "start the same command again, on any number of GPUs: it goes on from the last finished step"

Lost = Callable[[str], None]


class Head:
    """Rank 0's side: a connection to each of the others."""

    def __init__(self, address: str, others: int, secret: str) -> None:
        self._others, self.secret = others, secret
        try:
            self._server = socket.create_server((address, 0), backlog=max(others, 1))
        except OSError:  # the name that the others reach this machine by is no interface of its own
            self._server = socket.create_server(("", 0), backlog=max(others, 1))
        self.port: int = self._server.getsockname()[1]
        self._connected: dict[socket.socket, int] = {}
        self._ending = False

    def accept(self, lost: Lost) -> None:
        """Wait for the others, then watch them; `lost` is told, in another thread, what became of one. Raises
        OSError."""
        self._server.settimeout(JOINING)
        while len(self._connected) < self._others:
            connection, _ = self._server.accept()
            connection.settimeout(JOINING)
            with suppress(OSError, ValueError, AttributeError):  # it may be anybody
                hello = json.loads(_line(connection))
                if hello.get("secret") == self.secret:
                    _keep_alive(connection)
                    connection.settimeout(None)
                    self._connected[connection] = int(hello["rank"])
        self._server.close()
        threading.Thread(target=self._watch, args=(lost,), name="lifeline", daemon=True).start()

    def _watch(self, lost: Lost) -> None:
        watched = dict(self._connected)
        while watched:
            for connection in select.select(list(watched), [], [])[0]:
                line = b""
                with suppress(OSError):
                    line = _line(connection)
                if self._ending:
                    del watched[connection]
                elif not line:
                    lost(f"rank {watched[connection]} died")
                    return
                elif line == b"terminate":
                    os.kill(os.getpid(), signal.SIGTERM)
                else:
                    lost(f"rank {watched[connection]}: {json.loads(line)['error']}")
                    return

    def dismiss(self) -> None:
        """Let the others go."""
        self._ending = True
        for connection in self._connected:
            with suppress(OSError):
                connection.sendall(b"end\n")
                connection.shutdown(socket.SHUT_WR)

    def end(self) -> None:
        """Let the others go, and wait until they have gone."""
        self.dismiss()
        for connection in self._connected:
            with suppress(OSError):
                connection.settimeout(FAREWELL)
                while connection.recv(256):
                    pass


class Line:
    """The side of every other rank. The process ends when rank 0 does."""

    def __init__(self, address: str, port: int, rank: int, secret: str) -> None:
        self._rank = rank
        self._socket = socket.create_connection((address, port), JOINING)
        self._socket.settimeout(None)
        _keep_alive(self._socket)
        self._send({"rank": rank, "secret": secret})
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 obeys it, and ends us
        signal.signal(signal.SIGTERM, lambda *_: self._socket.sendall(b"terminate\n"))
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def _send(self, plain: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(plain).encode() + b"\n")

    def fail(self, error: str) -> None:
        """Tell rank 0 why this process ends."""
        with suppress(OSError):
            self._send({"error": error})

    def _watch(self) -> None:
        line = b""
        with suppress(OSError):
            line = _line(self._socket)
        if line != b"end" and self._rank == 1:  # one is enough to say it
            os.write(2, f"wanlab: rank 0 died ({GO_ON})\n".encode())
        os._exit(0 if line == b"end" else 1)


def _line(connection: socket.socket) -> bytes:
    """The next line without its end; empty where there is none any more."""
    read = b""
    while not read.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            return b""
        read += byte
    return read[:-1]


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    each = VANISHED // (PROBES + 1)
    for name, value in (("TCP_KEEPIDLE", each), ("TCP_KEEPINTVL", each), ("TCP_KEEPCNT", PROBES)):
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
