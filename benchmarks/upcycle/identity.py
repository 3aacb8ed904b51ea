"""`upcycle --method identity`: nothing changes at step 0 for any source class; then SmolLM2-135M learns Austen.

    python benchmarks/upcycle/identity.py [--quick] [--json]

Part 1: max |difference of a logit| between dense and upcycled, for a tiny random model of every dense class. Part 2:
the memory layers alone are trained on Austen's training chapters; perplexity of held-out text before and after, on
Austen and on two texts that are not trained on (King James Bible, Wikipedia).
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ultramem_deploy as um
from benchmarks.common import machine, print_json, print_table
from benchmarks.upcycle.common import arguments, dense_model, held_out, perplexity
from benchmarks.upcycle.texts import TEXTS, text_file
from demo.source import cache_directory
from ultramem_deploy.model import load

TAUGHT = "austen"
CLASSES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Olmo", "Olmo2")
TINY = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64,
}  # fmt: skip
MEMORY = {"knum": 16, "key_width": 16, "value_width": 16, "top_m": 4}


def main() -> None:
    options = arguments(__doc__)
    start = time.perf_counter()
    training = {"steps": 16, "length": 128} if options.quick else {"steps": 200, "length": 256}
    with tempfile.TemporaryDirectory(dir=cache_directory()) as folder:
        classes = {name: step_zero(name, Path(folder)) for name in CLASSES}
        healed = heal(Path(folder), training, 1024 if options.quick else 8192)
    result = {
        "benchmark": "upcycle-identity",
        "machine": machine(),
        "max_abs_logit_difference": classes,
        "taught": TAUGHT,
        **healed,
        "seconds": round(time.perf_counter() - start, 1),
    }
    if not options.json:
        print_table(("source class", "max |difference of a logit|"), list(classes.items()))
        rows = [(name, one["before"], one["after"], one["change"]) for name, one in healed["perplexity"].items()]
        print_table(("held-out text", "perplexity before", "after healing", "change"), rows)
    print_json(result)


def step_zero(name: str, folder: Path) -> float:
    """Of a tiny random model of the class, converted and upcycled."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**TINY)
    source, dense, out = (folder / f"{name}-{part}" for part in ("source", "dense", "upcycled"))
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(source)
    um.convert(source, dense)
    um.upcycle(dense, out, **MEMORY)
    ids = torch.arange(64)[None] % TINY["vocab_size"]
    return float((load(out)(ids) - load(dense)(ids)).abs().max())


def heal(folder: Path, training: dict[str, int], tokens: int) -> dict[str, Any]:
    """Teach SmolLM2's new memory layers one text; held-out perplexity on all three before and after."""
    dense, upcycled, healed = dense_model(), folder / "upcycled", folder / "healed"
    um.upcycle(dense, upcycled)
    start = time.perf_counter()
    receipt = um.heal(upcycled, healed, text=text_file(TAUGHT), **training)
    seconds = time.perf_counter() - start
    models = {"before": load(dense, dtype="float32"), "after": load(healed, dtype="float32")}
    table: dict[str, dict[str, float]] = {}
    for name in TEXTS:
        windows = held_out(dense, name, tokens)
        found = {when: perplexity(model, windows) for when, model in models.items()}
        table[name] = found | {"change": found["after"] / found["before"] - 1}
    return {
        "perplexity": table,
        "trained_tokens": receipt["tokens"],
        "held_out_tokens": tokens,
        "heal_seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
