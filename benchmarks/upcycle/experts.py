"""`upcycle --method experts` on a tiny OLMoE trained here: exact at all neurons, and what fewer cost.

    python benchmarks/upcycle/experts.py [--quick] [--json]

The source is trained here (benchmarks/upcycle/tiny_olmoe.py, seeded; 240 steps with --quick, about a minute on 2 idle
cores, 1,200 without; a longer training in the cache is taken instead). Columns are calibrated on Wikipedia; everything
is reported on the held-out tenth of that text's documents, before any training. ONNX Runtime decodes both: its MoE
operator against our kernels. Without --quick also a random model of OLMoE-1B-7B's layer shape, for scale.
"""

from __future__ import annotations

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
from benchmarks.upcycle.common import arguments
from benchmarks.upcycle.scale import real_shape
from benchmarks.upcycle.texts import text_file
from benchmarks.upcycle.tiny_olmoe import trained
from demo.source import cache_directory
from ultramem_deploy.runtime.ort import OrtRunner
from ultramem_deploy.runtime.scoring import decode_rates

ACTIVE = (1.0, 0.75, 0.5, 0.25)
COLUMNS = ("fitted", "popular", "random")
TEXT = "wikipedia"


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
        speed = decode(base)
        result: dict[str, Any] = {
            "benchmark": "upcycle-experts",
            "machine": machine(),
            "source": {"name": source.name, "trained_here": True, "trained_now": now},
            "text": TEXT,
            **tokens,
            "rows": rows,
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
                "recall": mean(receipt, "recall"),
                "relative_error": mean(receipt, "relative_error"),
                "oracle_ratio": receipt["baselines"].get("oracle", {}).get("perplexity_ratio"),
                "fewer_experts_ratio": receipt["baselines"].get("experts", {}).get("perplexity_ratio"),
                "dead_experts": sum(block["dead_experts"] for block in receipt["blocks"]),
                "largest_expert_share": max(block["largest_expert_share"] for block in receipt["blocks"]),
            }
        )
    return rows


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
    print_table(("decoded by ONNX Runtime", "tokens/s"), list(result["decode_tokens_per_second"].items()))
    if result["real_shape"]:
        print_table(("OLMoE-1B-7B's layer shape, random", ""), list(result["real_shape"].items()))


if __name__ == "__main__":
    main()
