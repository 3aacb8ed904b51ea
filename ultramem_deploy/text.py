"""Text to train and to measure on: documents, a split that holds out whole documents, and token windows."""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import InputError
from .runtime.tokenizer import Tokenizer

HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class Corpus:
    """Training and held-out documents; no paragraph of the held-out ones occurs in the training ones."""

    name: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Hash of all documents, which stages guard their resumption with."""
        return hashlib.sha256("\f".join((*self.train, *self.held_out)).encode()).hexdigest()


def load_corpus(path: str | Path | None = None, option: str = "--text") -> Corpus:
    """Documents of a text file (separated by form feeds or by three line breaks), or the Python language reference.

    Every tenth document is held out. Raises InputError, beginning with `option`, where the file cannot be read or is
    too short to split.
    """
    if path is None:
        name, documents = "python-language-reference", _python_reference()
    else:
        name, documents = Path(path).name, _documents(read_text(path, option))
    held_out = tuple(documents[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
    train = [d for i, d in enumerate(documents) if i % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
    if not held_out:
        raise InputError(
            f"{option}: {name}: {len(documents)} documents are too few to hold one in {HELD_OUT_EVERY} out; give a "
            "longer text"
        )
    return Corpus(name, tuple(_without_repeats(train, held_out)), held_out)


def read_text(path: str | Path, option: str = "--text") -> str:
    """A whole UTF-8 text file. Raises InputError where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{option}: {path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{option}: {path}: is a directory; expected a text file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option}: {path}: cannot be read as UTF-8 text ({error})") from None


def _python_reference() -> list[str]:
    from pydoc_data.topics import topics

    # Topic names are sorted by subject; a fixed shuffle spreads the held-out tenth over all of them.
    names = sorted(topics)
    random.Random(0).shuffle(names)
    return [topics[name] for name in names]


def _documents(content: str) -> list[str]:
    documents = [d.strip() for d in re.split(r"\f|\n{3,}", content)]
    documents = [d for d in documents if d]
    if len(documents) >= HELD_OUT_EVERY:
        return documents
    paragraphs = [p for p in content.split("\n\n") if p.strip()]
    size = max(1, len(paragraphs) // (2 * HELD_OUT_EVERY))
    return ["\n\n".join(paragraphs[i : i + size]) for i in range(0, len(paragraphs), size)]


def _without_repeats(train: list[str], held_out: tuple[str, ...]) -> list[str]:
    seen = {p.strip() for document in held_out for p in document.split("\n\n")}
    kept = ("\n\n".join(p for p in d.split("\n\n") if p.strip() not in seen) for d in train)
    return [d for d in kept if d.strip()]


def token_windows(
    tokenizer: Tokenizer, documents: tuple[str, ...], length: int, count: int | None = None
) -> np.ndarray:
    """int64 [count, length]: consecutive windows of the documents' tokens, joined by blank lines.

    `count` None takes every whole window. Raises InputError where the text holds fewer.
    """
    needed = None if count is None else count * length
    ids: list[int] = []
    for document in documents:
        ids += tokenizer.encode(document + "\n\n")
        if needed is not None and len(ids) >= needed:
            break
    windows = len(ids) // length if count is None else count
    if windows == 0 or len(ids) < windows * length:
        raise InputError(f"the text holds {len(ids)} tokens, {max(windows, 1) * length} are needed: give a longer one")
    return np.asarray(ids[: windows * length], dtype=np.int64).reshape(windows, length)
