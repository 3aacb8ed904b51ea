"""The tokenizer that travels with a model (`tokenizer.json`), through Hugging Face's tokenizers."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.companions import companion_files as companion_files
from ..errors import InputError


class Tokenizer:
    """Text <-> token ids, without adding special tokens."""

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer as HFTokenizer

        path = directory / "tokenizer.json"
        if not path.exists():
            raise InputError(f"{directory.name}: no tokenizer.json: copy the source model's into the directory")
        try:
            self._tokenizer = HFTokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception for every malformed file
            raise InputError(f"{directory.name}/tokenizer.json: cannot be read ({error})") from None

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def has_tokenizer(directory: Path) -> bool:
    return (directory / "tokenizer.json").is_file()
