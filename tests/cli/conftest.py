"""The command in this process, and a whole chain of tiny artifacts made by it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from tests.converters.importers.sources import family_config, llama_shapes, random_tensors, write_source
from ultramem_deploy.cli import main

VOCAB = 320
SIZES = ["--paths", "0:1", "--knum", "8", "--key-width", "4", "--value-width", "8", "--top-m", "4", "--blocks", "4"]
TRAINING = ["--steps", "3", "--batch", "2", "--length", "16", "--warmup", "1"]

Invoke = Callable[..., Result]


@pytest.fixture(scope="session")
def um() -> Invoke:
    """um("verb", argument, …): run the command; exit code, stdout, stderr and exception are in the result."""

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama directory with a tokenizer of its own."""
    directory = tmp_path_factory.mktemp("chain")
    shapes = llama_shapes() | {"model.embed_tokens.weight": (VOCAB, 32), "lm_head.weight": (VOCAB, 32)}
    scaled = {name: tensor * (0.1 if tensor.ndim > 1 else 1.0) for name, tensor in random_tensors(shapes).items()}
    path = write_source(directory / "source", family_config("llama", vocab_size=VOCAB), scaled, 1)
    _write_tokenizer(path / "tokenizer.json")
    return path


@pytest.fixture(scope="session")
def text(source: Path) -> Path:
    """Forty documents of random words."""
    path = source.parent / "corpus.txt"
    path.write_text("\n\n\n".join(_documents()), encoding="utf-8")
    return path


def _documents() -> list[str]:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 6))) for _ in range(60)]
    return [" ".join(rng.choices(words, k=60)) for _ in range(40)]


def _write_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(vocab_size=VOCAB - 10, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(_documents(), trainer)
    tokenizer.save(str(path))


@dataclass(frozen=True)
class Chain:
    """The artifacts by stage, and what each command printed as JSON."""

    paths: dict[str, Path]
    printed: dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def chain(um: Invoke, source: Path, text: Path) -> Chain:
    """source -> convert -> upcycle -> heal -> fold -> export."""
    stages = {"convert": [], "upcycle": SIZES, "heal": ["--text", text, *TRAINING], "fold": [], "export": []}
    paths, printed, last = {"source": source}, {}, source
    for verb, options in stages.items():
        out = source.parent / verb
        result = um(verb, last, out, *options, "--json", "--quiet")
        assert result.exit_code == 0, result.output
        paths[verb], printed[verb], last = out, json.loads(result.stdout), out
    return Chain(paths, printed)
