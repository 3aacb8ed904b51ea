"""`upcycle --method identity`: nothing changes at step 0 for any source class; then SmolLM2-135M learns Austen.

    python benchmarks/upcycle/identity.py [--quick] [--json]

Part 1: max |difference of a logit| between a model and its upcycled form, for a tiny random model of every class. Part
2: the memory layers alone are trained on Austen's training chapters, while the divergence from the source is held down
on Wikipedia's training articles (`heal --distill SOURCE --retain`); perplexity of held-out documents before and after,
on Austen, on Wikipedia, and on the King James Bible, of which training sees nothing. Without --quick the same training
with nothing retained is the comparison. `heal_cpu_seconds` counts all cores: on a machine that does nothing else, half
as many seconds pass on 2 cores.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
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

TAUGHT, RETAINED = "austen", "wikipedia"
TINY = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
ROUTED = {"num_experts": 4, "num_experts_per_tok": 2}
CLASSES: dict[str, dict[str, int]] = {
    "Llama": {}, "Mistral": {}, "Qwen2": {}, "Qwen3": {}, "Olmo": {"eos_token_id": 0}, "Olmo2": {"eos_token_id": 0},
    "Gemma3": {}, "Olmoe": ROUTED | {"eos_token_id": 0}, "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2Moe": ROUTED | {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 32},
    "Qwen3Moe": ROUTED | {"moe_intermediate_size": 24},
    "DeepseekV3": {
        "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    },
}  # fmt: skip
MEMORY = {"knum": 16, "key_width": 16, "value_width": 16, "top_m": 4}
TRAINING = {"length": 256, "batch": 4, "retain_batch": 1}
STEPS, QUICK_STEPS = 120, 24


def main() -> None:
    options = arguments(__doc__)
    start = time.perf_counter()
    steps, tokens = (QUICK_STEPS, 2048) if options.quick else (STEPS, 8192)
    with tempfile.TemporaryDirectory(dir=cache_directory()) as folder:
        classes = {name: step_zero(name, Path(folder)) for name in CLASSES}
        ways = ("perplexity",) if options.quick else ("perplexity", "perplexity_nothing_retained")
        healed = heal(Path(folder), {**TRAINING, "steps": steps, "eval_every": steps}, tokens, ways)
    result = {
        "benchmark": "upcycle-identity",
        "machine": machine(),
        "max_abs_logit_difference": classes,
        "taught": TAUGHT,
        "retained": RETAINED,
        **healed,
        "seconds": round(time.perf_counter() - start, 1),
    }
    if not options.json:
        print_table(("source class", "max |difference of a logit|"), list(classes.items()))
        for way in ways:
            rows = [(name, one["before"], one["after"], f"{one['change']:+.1%}") for name, one in healed[way].items()]
            print_table((f"held-out text, {way.replace('_', ' ')}", "before", "after healing", "change"), rows)
    print_json(result)


def step_zero(name: str, folder: Path) -> float:
    """Of a tiny random model of the class, converted and upcycled."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")
    source, dense, out = (folder / f"{name}-{part}" for part in ("source", "dense", "upcycled"))
    getattr(transformers, f"{name}ForCausalLM")(config(**TINY | CLASSES[name])).save_pretrained(source)
    um.convert(source, dense)
    um.upcycle(dense, out, **MEMORY)
    ids = torch.arange(64)[None] % TINY["vocab_size"]
    return float((load(out)(ids) - load(dense)(ids)).abs().max())


def heal(folder: Path, training: dict[str, Any], tokens: int, ways: Sequence[str]) -> dict[str, Any]:
    """Teach SmolLM2's new memory layers one text; held-out perplexity on all three before and after, each way."""
    dense, upcycled = dense_model(), folder / "upcycled"
    um.upcycle(dense, upcycled)
    windows = {name: held_out(dense, name, tokens) for name in TEXTS}
    before = measured(dense, windows)
    result: dict[str, Any] = {"held_out_tokens": tokens}
    for way in ways:
        start, cpu = time.perf_counter(), time.process_time()
        held = {"distill": dense, "retain": text_file(RETAINED)} if way == "perplexity" else {}
        receipt = um.heal(upcycled, folder / way, text=text_file(TAUGHT), **held, **training)
        spent = {"heal_seconds": time.perf_counter() - start, "heal_cpu_seconds": time.process_time() - cpu}
        after = measured(folder / way, windows)
        result[way] = {
            name: {"before": before[name], "after": after[name], "change": after[name] / before[name] - 1}
            for name in TEXTS
        }
        if way == "perplexity":
            result |= {"trained_tokens": receipt["tokens"], **{key: round(value, 1) for key, value in spent.items()}}
    return result


def measured(path: Path, windows: dict[str, np.ndarray]) -> dict[str, float]:
    """Perplexity on each text, float32."""
    model = load(path, dtype="float32")
    return {name: perplexity(model, held) for name, held in windows.items()}


if __name__ == "__main__":
    main()
