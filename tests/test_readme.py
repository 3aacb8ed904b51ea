"""Every command of the README runs, in its order, on a tiny model that has the README's name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from tests import builders as b
from ultramem_deploy.cli import main
from ultramem_deploy.cli.app import VERBS
from ultramem_deploy.spec import ExpertsSpec, ModelSpec, RoutingSpec
from ultramem_deploy.text import load_corpus

README = Path(__file__).parents[1] / "README.md"
PROGRAM = "ultramem-deploy "


def commands() -> list[str]:
    """The command lines of the README's code blocks, trailing comments cut."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith(PROGRAM)]
    return [line.split("  #")[0].strip() for line in lines]


def write_model(directory: Path) -> None:
    """A tiny Llama as transformers saves it, with a byte-level tokenizer trained on the default text."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(load_corpus().train[:20], BpeTrainer(vocab_size=512, show_progress=False))
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))


def test_every_command_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(Path("SmolLM2-135M"))
    b.write_checkpoint(Path("olmoe"), ModelSpec(b.decoder(experts=ExpertsSpec((0, 1), 6, 10, RoutingSpec(2)))))
    lines = commands()
    verbs = {shlex.split(line)[1] for line in lines}
    assert verbs == set(VERBS)
    for line in lines:
        # A tiny model learns as much from a few small steps; the README's numbers are for a real one.
        shorter = line.replace("--steps 48", "--steps 4 --batch 2 --length 32").replace("heal.steps=48", "heal.steps=2")
        result = CliRunner().invoke(main, shlex.split(shorter)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception}"
