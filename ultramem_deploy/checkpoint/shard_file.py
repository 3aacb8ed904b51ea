"""One safetensors file written as a stream of chunks; what an interrupted run wrote of it is continued."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ultramem_deploy.checkpoint.appending import DIRECT_BYTES, HashedFile
from ultramem_deploy.checkpoint.chunks import Crew, file_chunks
from ultramem_deploy.checkpoint.files import fsync_directory, write_failed
from ultramem_deploy.checkpoint.journal import Journal
from ultramem_deploy.checkpoint.writer import TensorTask, data_order, header_bytes


def write_shard(
    path: Path,
    tasks: Sequence[TensorTask],
    crew: Crew,
    on_bytes: Callable[[int], None] | None = None,
) -> tuple[str, int]:
    """Write `tasks` to the safetensors file `path`; its SHA-256 as hex, and the bytes that an earlier run had written.

    Chunks are computed by `crew` and written in one fixed order, so the bytes do not depend on who computes. The file
    appears under its name only when it is whole and synced; beside it grow its part and the journal from which a killed
    run is continued. `on_bytes` gets the size of each piece.
    InputError when the disk is full or the file cannot be written.
    """
    ordered = data_order(tasks)
    header, journal = header_bytes(ordered), Journal(path)
    size = len(header) + sum(task.nbytes for task in ordered)
    report = on_bytes or (lambda count: None)
    try:
        with _writing(path, size):
            done, digest = journal.verified(header, report)
            file = HashedFile(journal.part, done, digest, size >= DIRECT_BYTES)
        with contextlib.closing(file):
            for piece in _pieces(header, ordered, done, crew):
                with _writing(path, size):
                    file.write(piece)
                    if journal.is_due(file.end):
                        journal.note(file.end, file.sync())
                report(len(piece))
                del piece  # else one chunk more is held while the next is computed
            with _writing(path, size):
                sha256 = file.finish()
        with _writing(path, size):
            os.replace(journal.part, path)
            journal.close()
            fsync_directory(path.parent)
    except BaseException:
        if journal.is_empty:
            journal.discard()
        raise
    return sha256, done


def _pieces(header: bytes, ordered: Sequence[TensorTask], done: int, crew: Crew) -> Iterator[memoryview]:
    """What follows the first `done` bytes of the file."""
    if done < len(header):
        yield memoryview(header)[done:]
    missing = [chunk for chunk in file_chunks(ordered, len(header)) if chunk.offset + chunk.nbytes > done]
    with contextlib.closing(crew.pieces(missing)) as pieces:
        if missing and done > missing[0].offset:
            yield next(pieces)[done - missing[0].offset :]
        yield from pieces


@contextlib.contextmanager
def _writing(path: Path, needed: int) -> Iterator[None]:
    """Turn the operating system's refusal to write into the one-line error; reads and computation raise their own."""
    try:
        yield
    except OSError as error:
        raise write_failed(path, error, needed) from None
