"""Documents, the held-out tenth, and token windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import builders as b
from ultramem_deploy.errors import InputError
from ultramem_deploy.runtime.tokenizer import Tokenizer, companion_files, has_tokenizer
from ultramem_deploy.text import load_corpus, token_windows


def text_file(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize("separator", ["\f", "\n\n\n", "\n\n\n\n"], ids=repr)
def test_every_tenth_document_is_held_out(tmp_path: Path, separator: str) -> None:
    documents = [f"document {i}" for i in range(25)]
    corpus = load_corpus(text_file(tmp_path, separator.join(documents)))
    assert corpus.held_out == ("document 9", "document 19")
    assert list(corpus.train) == [d for d in documents if d not in corpus.held_out]
    assert corpus.name == "text.txt"


def test_one_document_is_split_by_paragraphs(tmp_path: Path) -> None:
    paragraphs = [f"paragraph {i}" for i in range(40)]
    corpus = load_corpus(text_file(tmp_path, "\n\n".join(paragraphs)))
    assert corpus.held_out == ("paragraph 18\n\nparagraph 19", "paragraph 38\n\nparagraph 39")
    kept = "\n\n".join(corpus.train).split("\n\n")
    assert sorted(kept + "\n\n".join(corpus.held_out).split("\n\n")) == sorted(paragraphs)


def test_training_text_repeats_nothing_that_is_held_out(tmp_path: Path) -> None:
    documents = [f"first {i}\n\nlicence\n\nlast {i}" for i in range(20)]
    corpus = load_corpus(text_file(tmp_path, "\f".join(documents)))
    held_out = {p for document in corpus.held_out for p in document.split("\n\n")}
    assert "licence" in held_out
    assert not held_out & {p for document in corpus.train for p in document.split("\n\n")}
    assert len(corpus.train) == 18


def test_the_language_reference_is_the_default() -> None:
    corpus = load_corpus()
    assert corpus.name == "python-language-reference"
    assert len(corpus.held_out) >= 5 and len(corpus.train) > 8 * len(corpus.held_out)
    assert corpus == load_corpus()


@pytest.mark.parametrize("content", ["", "one\n\ntwo", "\f".join(map(str, range(9)))], ids=repr)
def test_too_few_documents(tmp_path: Path, content: str) -> None:
    with pytest.raises(InputError, match=r"text\.txt: \d+ documents are too few"):
        load_corpus(text_file(tmp_path, content))


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--text: .*: no such file"):
        load_corpus(tmp_path / "missing.txt")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        load_corpus(tmp_path / "bytes")
    with pytest.raises(InputError, match="--retain: .*: is a directory; expected a text file"):
        load_corpus(tmp_path, "--retain")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    b.write_tokenizer(tmp_path)
    return Tokenizer(tmp_path)


def test_windows_are_consecutive(tokenizer: Tokenizer) -> None:
    windows = token_windows(tokenizer, ("abc", "de"), 3)
    assert windows.dtype == np.int64
    assert [tokenizer.decode(list(map(int, w))) for w in windows] == ["abc", "\n\nd", "e\n\n"]
    np.testing.assert_array_equal(token_windows(tokenizer, ("abc", "de"), 4, 2), windows.reshape(-1)[:8].reshape(2, 4))


@pytest.mark.parametrize(("length", "count", "needed"), [(10, None, 10), (4, 3, 12)])
def test_too_few_tokens(tokenizer: Tokenizer, length: int, count: int | None, needed: int) -> None:
    with pytest.raises(InputError, match=f"the text holds 9 tokens, {needed} are needed"):
        token_windows(tokenizer, ("abc", "de"), length, count)


def test_tokenizer_round_trip(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("it's a table,\nno?")) == "it's a table,\nno?"


def test_tokenizer_files(tmp_path: Path) -> None:
    assert not has_tokenizer(tmp_path)
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path)
    for name in ("tokenizer.json", "generation_config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    assert [file.name for file in companion_files(tmp_path)] == ["tokenizer.json", "generation_config.json"]
    with pytest.raises(InputError, match=r"tokenizer\.json: cannot be read"):
        Tokenizer(tmp_path)
