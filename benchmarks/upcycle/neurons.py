"""`upcycle --method neurons` on SmolLM2-135M, untrained: the error over the active fraction, oracle and fitted keys.

    python benchmarks/upcycle/neurons.py [--quick] [--json]

Calibrated on Wikipedia's training documents; how the neurons are spread over the blocks is chosen on the King James
Bible; everything reported is measured once on Austen's held-out chapters. float32. The curve masks the dense model's
neurons, which is what the memories compute; the rows "checkpoint" are upcycled checkpoints, loaded and run.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ultramem_deploy as um
from benchmarks.common import machine, print_json, print_table
from benchmarks.upcycle.common import arguments, dense_model, drift, held_out, logits
from benchmarks.upcycle.texts import text_file
from demo.source import cache_directory
from ultramem_deploy.converters.upcycle.baselines import Choice, fitted, oracle, selective
from ultramem_deploy.converters.upcycle.calibration import calibrate, ffns, shuffled_windows
from ultramem_deploy.converters.upcycle.neuron_options import NeuronOptions
from ultramem_deploy.converters.upcycle.neurons import BlockCurve, block_curves, plan_blocks
from ultramem_deploy.model import UltraMemModel, load
from ultramem_deploy.runtime.tokenizer import Tokenizer
from ultramem_deploy.text import load_corpus

FRACTIONS = (0.125, 0.25, 0.5, 1.0)
CALIBRATE, CHOOSE, REPORT = "wikipedia", "kjv", "austen"


def main() -> None:
    options = arguments(__doc__)
    tokens = 512 if options.quick else 8192
    sizes = {"calibration_tokens": 2048 if options.quick else 16384, "held_out_tokens": 512 if options.quick else 2048}
    start = time.perf_counter()
    source = dense_model()
    model = load(source, dtype="float32")
    corpus = load_corpus(text_file(CALIBRATE))
    windows = shuffled_windows(Tokenizer(source), corpus.train, sizes["calibration_tokens"], 256)
    statistics = calibrate(model, windows)
    curves = block_curves(model, statistics, NeuronOptions(), exact_scales=False)
    spread, tried = choose_spread(source, model, curves, tokens)
    report = held_out(source, REPORT, tokens)
    reference = logits(model, report)
    curve = []
    for fraction in FRACTIONS:
        row: dict[str, Any] = {"active": fraction}
        for name, choices in selections(model, curves, fraction, spread).items():
            with selective(model, choices):
                row[name] = drift(model, report, reference)
        curve.append(row)
    checkpoints = {}
    with tempfile.TemporaryDirectory(dir=cache_directory()) as folder:
        for active in (0.5, 1.0):
            out = Path(folder) / f"active-{active}"
            receipt = um.upcycle(
                source, out, method="neurons", text=text_file(CALIBRATE), active=active, spread=spread, **sizes
            )
            checkpoints[f"{active:g}"] = {
                **drift(load(out, dtype="float32"), report, reference),
                "ffn_bytes_fraction": receipt["ffn_bytes_fraction"],
                "baselines": receipt["baselines"],
                "relative_error": [block["relative_error"] for block in receipt["blocks"]],
                "recall": [block["recall"] for block in receipt["blocks"]],
            }
    result = {
        "benchmark": "upcycle-neurons",
        "machine": machine(),
        "texts": {"calibrated": CALIBRATE, "chosen": CHOOSE, "reported": REPORT},
        "tokens": {"calibration": windows.size, "report": report.size},
        "spread": spread,
        "spread_tried": tried,
        "curve": curve,
        "checkpoints": checkpoints,
        "seconds": round(time.perf_counter() - start, 1),
    }
    if not options.json:
        show(result)
    print_json(result)


def choose_spread(
    source: Path, model: UltraMemModel, curves: list[BlockCurve], tokens: int
) -> tuple[str, dict[str, float]]:
    """The spread with the lower perplexity on the second text at half of the neurons, and both ratios."""
    windows = held_out(source, CHOOSE, tokens)
    reference = logits(model, windows)
    ratios = {}
    for spread in ("error", "even"):
        with selective(model, planned(model, curves, 0.5, spread)):
            ratios[spread] = drift(model, windows, reference)["ratio"]
    return min(ratios, key=lambda spread: ratios[spread]), ratios


def selections(
    model: UltraMemModel, curves: list[BlockCurve], fraction: float, spread: str
) -> dict[str, list[Choice | None]]:
    """What the oracle and the fitted keys keep: the oracle the same fraction of every block."""
    count = round(fraction * model.spec.decoder.intermediate_size)
    best: list[Choice | None] = [oracle(mlp, count) for mlp in ffns(model)]
    return {"oracle": best, "fitted": planned(model, curves, fraction, spread)}


def planned(model: UltraMemModel, curves: list[BlockCurve], fraction: float, spread: str) -> list[Choice | None]:
    plans = plan_blocks(curves, NeuronOptions(active=fraction, spread=spread))
    return [
        fitted(mlp, curve.scale, plan.top_m, plan.kept)
        for mlp, curve, plan in zip(ffns(model), curves, plans, strict=True)
    ]


def show(result: dict[str, Any]) -> None:
    rows = [
        (f"{row['active']:.1%}", row["oracle"]["ratio"], row["fitted"]["ratio"], row["fitted"]["kl"])
        for row in result["curve"]
    ]
    print_table(("active", "oracle, ratio", "fitted keys, ratio", "KL, nats"), rows)
    print_table(
        ("checkpoint", "ratio", "FFN bytes read", "pruned", "clusters", "random keys"),
        [
            (
                name,
                one["ratio"],
                one["ffn_bytes_fraction"],
                *(one["baselines"][b]["perplexity_ratio"] for b in BASELINES),
            )
            for name, one in result["checkpoints"].items()
        ],
    )


BASELINES = ("pruned_dense", "clusters", "random_keys")

if __name__ == "__main__":
    main()
