"""A process that computes chunks for another: `python -m ultramem_deploy.checkpoint.worker CONNECTION MEMORY`."""

from __future__ import annotations

import contextlib
import mmap
import signal
import sys
from multiprocessing.connection import Connection

from ultramem_deploy.checkpoint.chunks import computed
from ultramem_deploy.checkpoint.portable import unpacked


def serve(connection: Connection, memory: mmap.mmap) -> None:
    """Answer (task, start, stop, byte of `memory` where the result goes) with None, or what went wrong; until EOF."""
    tasks = unpacked(connection.recv_bytes())
    while True:
        number, start, stop, at = connection.recv()
        error: Exception | None = None
        try:
            piece = computed(tasks[number], start, stop)
            memory[at : at + len(piece)] = piece
            del piece
        except Exception as problem:
            error = problem
        connection.send(error)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks decides
    with contextlib.suppress(EOFError, ConnectionError):
        serve(Connection(int(sys.argv[1])), mmap.mmap(int(sys.argv[2]), 0))
