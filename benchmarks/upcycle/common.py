"""What the upcycling benchmarks share: the source model, windows of the three texts, perplexity over them."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch

import ultramem_deploy as um
from benchmarks.sources import saved_source
from benchmarks.upcycle.texts import text_file
from demo.source import cache_directory
from ultramem_deploy.converters.upcycle.calibration import shuffled_windows
from ultramem_deploy.converters.upcycle.receipt import Drift
from ultramem_deploy.model import UltraMemModel
from ultramem_deploy.runtime.tokenizer import Tokenizer
from ultramem_deploy.text import load_corpus


def arguments(description: str | None) -> argparse.Namespace:
    """--quick and --json."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller token counts: at most 5 minutes on 2 cores")
    parser.add_argument("--json", action="store_true", help="only the JSON object, as the last line")
    return parser.parse_args()


def dense_model() -> Path:
    """SmolLM2-135M as a canonical checkpoint, cached."""
    target = cache_directory() / "smollm2-135m-instruct-canonical"
    um.convert(saved_source(), target, overwrite=True)
    return target


def held_out(model: Path, text: str, tokens: int) -> np.ndarray:
    """int64 [count, 256] from the held-out documents of a text."""
    return shuffled_windows(Tokenizer(model), load_corpus(text_file(text)).held_out, tokens, 256)


@torch.no_grad()
def logits(model: UltraMemModel, windows: np.ndarray) -> list[torch.Tensor]:
    """float32 [length, V] of each window."""
    return [model(torch.from_numpy(window)[None])[0].float() for window in windows]


@torch.no_grad()
def drift(model: UltraMemModel, windows: np.ndarray, source: list[torch.Tensor]) -> dict[str, float]:
    """perplexity, its ratio to the source's and KL(source || model), nats a token; `source` from `logits`."""
    ours, theirs = Drift(), Drift()
    for window, reference in zip(windows, source, strict=True):
        ids = torch.from_numpy(window)
        found = model(ids[None])[0].float()
        ours.add(reference, found, ids)
        theirs.add(reference, reference, ids)
    result = ours.result()
    return result | {"ratio": result["perplexity"] / theirs.result()["perplexity"]}


@torch.no_grad()
def perplexity(model: UltraMemModel, windows: np.ndarray) -> float:
    """exp of the mean next-token loss."""
    losses = [
        torch.nn.functional.cross_entropy(found[:-1], torch.from_numpy(window)[1:]).item()
        for window, found in zip(windows, logits(model, windows), strict=True)
    ]
    return math.exp(sum(losses) / len(losses))
