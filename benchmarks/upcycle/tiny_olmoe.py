"""A tiny OLMoE trained here, seeded: no pretrained mixture of experts is small enough for this machine.

    python benchmarks/upcycle/tiny_olmoe.py [--steps 1200]

4 blocks, hidden 128, 16 experts of 128 neurons, 4 a token, BPE of 2048 tokens; Austen, the King James Bible and
Wikipedia articles, a tenth of their documents held out. A step is 2,048 tokens, so the model depends on --steps and not
on the machine's speed. Say "trained here" wherever it is used.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.upcycle.texts import TEXTS, text_file
from demo.source import cache_directory
from ultramem_deploy.text import load_corpus

VOCABULARY, LENGTH, BATCH, SEED = 2048, 128, 16, 0
LEARNING_RATE, WARM_UP = 3e-3, 50


def trained(steps: int) -> tuple[Path, bool]:
    """The directory of the model as transformers saves it, and whether it was trained just now.

    A model that trained for at least `steps` is taken from the cache.
    """
    found = sorted(cache_directory().glob("tiny-olmoe-steps-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    longest = found[-1] if found else None
    if longest and int(longest.name.rpartition("-")[2]) >= steps:
        return longest, False
    target = cache_directory() / f"tiny-olmoe-steps-{steps}"
    partial = target.with_name(f"partial-{target.name}")
    _train(partial, steps)
    partial.replace(target)
    return target, True


def documents() -> tuple[list[str], list[str]]:
    """Training and held-out documents of all three texts."""
    corpora = [load_corpus(text_file(name)) for name in TEXTS]
    return [d for c in corpora for d in c.train], [d for c in corpora for d in c.held_out]


def _train(target: Path, steps: int) -> None:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    train, held_out = documents()
    tokenizer = _tokenizer(train)
    target.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(target / "tokenizer.json"))
    torch.manual_seed(SEED)
    config = OlmoeConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_experts=16, num_experts_per_tok=4, max_position_embeddings=512, output_router_logits=True,
        router_aux_loss_coef=0.01, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    config._experts_implementation = "grouped_mm"
    model = OlmoeForCausalLM(config)
    _fit(model, _tokens(tokenizer, train), steps)
    loss = _loss(model, _tokens(tokenizer, held_out))
    print(f"trained here: {steps} steps of {BATCH * LENGTH} tokens, held-out loss {loss:.3f} nats", file=sys.stderr)
    model.save_pretrained(target)


def _fit(model: torch.nn.Module, tokens: np.ndarray, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    generator = np.random.default_rng(SEED)
    for step in range(steps):
        rate = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP) * max(0.05, 1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        at = generator.integers(0, len(tokens) - LENGTH, BATCH)
        batch = torch.from_numpy(np.stack([tokens[i : i + LENGTH] for i in at]))
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def _loss(model: torch.nn.Module, tokens: np.ndarray, windows: int = 32) -> float:
    model.eval()
    step = len(tokens) // windows
    parts = [torch.from_numpy(tokens[i * step : i * step + LENGTH])[None] for i in range(windows)]
    losses = []
    for part in parts:
        logits = model(input_ids=part, output_router_logits=False).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, part[0, 1:]).item())
    return float(np.mean(losses))


def _tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _tokens(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    return np.concatenate([np.asarray([*e.ids, 0], np.int64) for e in tokenizer.encode_batch(texts)])


@click.command(help=__doc__)
@click.option("--steps", default=1200, show_default=True, help="Training steps of 2,048 tokens.")
def main(steps: int) -> None:
    """Train, unless the cache has one that trained as long."""
    print(trained(steps)[0])


if __name__ == "__main__":
    main()
