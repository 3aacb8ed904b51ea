"""`upcycle --method experts` on a tiny OLMoE trained here: exact at all neurons, and what fewer cost.

    python benchmarks/upcycle/experts.py [--quick] [--json]

The source is trained here (benchmarks/upcycle/tiny_olmoe.py, seeded; 240 steps with --quick, about a minute on 2 idle
cores, 1,200 without; a longer training in the cache is taken instead). Columns are calibrated on Wikipedia; everything
is reported on the held-out tenth of that text's documents, before any training and, for a quarter of the neurons, after
healing against the source (`heal --distill`) on the training documents. ONNX Runtime decodes both: its MoE operator
against our kernels. Without --quick also a random model of OLMoE-1B-7B's layer shape, for scale.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import ultramem_deploy as um
from benchmarks.common import machine, print_json, print_table
from benchmarks.upcycle.common import arguments, drift, held_out, logits
from benchmarks.upcycle.scale import real_shape
from benchmarks.upcycle.texts import text_file
from benchmarks.upcycle.tiny_olmoe import trained
from demo.source import cache_directory
from ultramem_deploy.model import load
from ultramem_deploy.runtime.ort import OrtRunner
from ultramem_deploy.runtime.scoring import decode_rates

ACTIVE = (1.0, 0.75, 0.5, 0.25)
COLUMNS = ("fitted", "popular", "random")
TEXT = "wikipedia"
HEALED = 0.25
HEALING = {"batch": 8, "length": 128, "lr": 1e-3, "value_lr": 1e-3}


def main() -> None:
    options = arguments(__doc__)
    start = time.perf_counter()
    source, now = trained(240 if options.quick else 1200)
    tokens = {
        "calibration_tokens": 4096 if options.quick else 16384,
        "held_out_tokens": 1024 if options.quick else 8192,
    }
    with tempfile.TemporaryDirectory(dir=cache_directory()) as folder:
        base = Path(folder)
        um.convert(source, base / "source")
        rows = [row for active in ACTIVE for row in upcycled(base, active, tokens)]
        healed = heal(base, 60 if options.quick else 200, tokens["held_out_tokens"])
        speed = decode(base)
        result: dict[str, Any] = {
            "benchmark": "upcycle-experts",
            "machine": machine(),
            "source": {"name": source.name, "trained_here": True, "trained_now": now},
            "text": TEXT,
            **tokens,
            "rows": rows,
            "healed": healed,
            "decode_tokens_per_second": speed,
            "real_shape": None if options.quick else real_shape(base),
            "seconds": time.perf_counter() - start,
        }
    if not options.json:
        show(result)
    print_json(result)


def upcycled(base: Path, active: float, tokens: dict[str, int]) -> list[dict[str, Any]]:
    """Receipts at one active fraction; with all neurons active columns are all the same."""
    rows = []
    for columns in COLUMNS if active < 1 else COLUMNS[:1]:
        out = base / f"{columns}-{active}"
        receipt = um.upcycle(
            base / "source", out, method="experts", text=text_file(TEXT), active=active, columns=columns, **tokens
        )
        rows.append(
            {
                "active": active,
                "columns": columns,
                **{name: receipt[name] for name in ("perplexity_source", "perplexity", "perplexity_ratio", "kl")},
                "loss_difference": math.log(receipt["perplexity_ratio"]),
                "recall": mean(receipt, "recall"),
                "relative_error": mean(receipt, "relative_error"),
                "oracle_ratio": receipt["baselines"].get("oracle", {}).get("perplexity_ratio"),
                "fewer_experts_ratio": receipt["baselines"].get("experts", {}).get("perplexity_ratio"),
                "dead_experts": sum(block["dead_experts"] for block in receipt["blocks"]),
                "largest_expert_share": max(block["largest_expert_share"] for block in receipt["blocks"]),
            }
        )
    return rows


def heal(base: Path, steps: int, tokens: int) -> dict[str, Any]:
    """Fitted columns with a quarter of the neurons, before and after `steps` of 1,024 tokens against the source."""
    source, upcycled, healed = base / "source", base / f"fitted-{HEALED}", base / "healed"
    start = time.perf_counter()
    receipt = um.heal(upcycled, healed, text=text_file(TEXT), distill=source, steps=steps, eval_every=steps, **HEALING)
    seconds = time.perf_counter() - start
    windows = held_out(source, TEXT, tokens)
    reference = logits(load(source, dtype="float32"), windows)
    measured = {
        when: drift(load(path, dtype="float32"), windows, reference)
        for when, path in (("before", upcycled), ("after", healed))
    }
    return {
        "active": HEALED,
        "tokens": receipt["tokens"],
        "regression_steps": receipt["regression_steps"],
        "seconds": seconds,
        **{when: found | {"loss_difference": math.log(found["ratio"])} for when, found in measured.items()},
    }


def mean(receipt: dict[str, Any], name: str) -> float:
    values = [block[name] for block in receipt["blocks"]]
    return float(sum(values) / len(values))


def decode(base: Path) -> dict[str, float]:
    """Median greedy tokens a second of 64 new tokens at batch 1, interleaved."""
    runners = {}
    for name in ("source", "fitted-1.0", "fitted-0.5"):
        um.export(base / name, base / f"{name}-onnx")
        runners[name] = OrtRunner(base / f"{name}-onnx", threads=torch.get_num_threads())
    return decode_rates(runners, list(range(5, 21)), 64, 5)


def show(result: dict[str, Any]) -> None:
    header = ("active", "columns", "perplexity", "ratio", "KL", "recall", "oracle", "fewer experts")
    names = (
        "active",
        "columns",
        "perplexity",
        "perplexity_ratio",
        "kl",
        "recall",
        "oracle_ratio",
        "fewer_experts_ratio",
    )
    print(f"{result['source']['name']}, trained here; perplexity {result['rows'][0]['perplexity_source']:.2f}")
    print_table(header, [["-" if row[name] is None else row[name] for name in names] for row in result["rows"]])
    healed = result["healed"]
    print_table(
        (f"{healed['active']:.0%} of the neurons, {healed['tokens']:,} tokens", "loss less the source's, nats", "KL"),
        [(when, healed[when]["loss_difference"], healed[when]["kl"]) for when in ("before", "after")],
    )
    print_table(("decoded by ONNX Runtime", "tokens/s"), list(result["decode_tokens_per_second"].items()))
    if result["real_shape"]:
        print_table(("OLMoE-1B-7B's layer shape, random", ""), list(result["real_shape"].items()))


if __name__ == "__main__":
    main()
