"""Files that travel with the weights from stage to stage: tokenizer, chat template, generation defaults."""

from __future__ import annotations

from pathlib import Path

from ultramem_deploy.checkpoint.index import inside

GENERATION_CONFIG = "generation_config.json"
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    GENERATION_CONFIG,
)


def companion_files(directory: Path) -> list[Path]:
    """The companions that `directory` holds. Raises InputError where one is a link that leaves the directory."""
    return [inside(directory, name) for name in COMPANIONS if (directory / name).is_file()]
