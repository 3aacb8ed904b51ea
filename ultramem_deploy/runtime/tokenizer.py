"""The tokenizer that travels with a model (`tokenizer.json`), through Hugging Face's tokenizers."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)


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


def companion_files(directory: Path) -> list[Path]:
    """The tokenizer and generation files of a model directory that a stage passes on unchanged."""
    return [directory / name for name in FILES if (directory / name).is_file()]
