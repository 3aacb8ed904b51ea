"""Decode of our export (--target ort) against the model that ONNX Runtime GenAI's builder makes of the same weights.

    python benchmarks/decode_genai.py --source HF_DIRECTORY [--work DIRECTORY] [--tokens 128] [--rounds 5] [--json]

The source is a dense Hugging Face model directory. Both models are float32, batch 1, greedy, and run through the same
loop over onnxruntime with their key-value buffers bound once, 16 steps of each in turn. A step reads every weight once
(a tied embedding as the output projection), so the bound is those bytes over the memory bandwidth measured here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import machine, median, print_json, print_table, read_bandwidth
from ultramem_deploy.converters.importers import import_checkpoint
from ultramem_deploy.converters.onnx import export_onnx
from ultramem_deploy.planning import parameter_counts
from ultramem_deploy.runtime.ort_cache import Lane, new_lane
from ultramem_deploy.runtime.ort_model import Opened, open_model
from ultramem_deploy.spec import ModelSpec

OURS, THEIRS = "ultramem-deploy", "genai builder"
REQUIRED = 0.95
# Steps of one model in a row: after a step its threads spin for a while, in the way of the other model's.
BLOCK = 16


def prepare(source: Path, work: Path) -> tuple[Path, Path]:
    """Our bundle and the builder's folder, made unless `work` holds them."""
    checkpoint, bundle, genai = work / "checkpoint", work / "bundle", work / "genai"
    import_checkpoint(source, checkpoint)
    export_onnx(checkpoint, bundle, target="ort")
    if not (genai / "model.onnx").exists():
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(genai)]
        subprocess.run([*builder, "-p", "fp32", "-e", "cpu", "-c", str(work / "cache")], check=True)
    return bundle, genai


def opened(folder: Path, spec: ModelSpec, threads: int | None) -> Opened:
    """The model of `folder` with its cache in place: both kinds use GroupQueryAttention."""
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    decoder = spec.decoder
    return replace(open_model(folder, model, decoder, threads=threads), packed=True, positions=decoder.max_positions)


def decode(models: dict[str, Opened], prompt: np.ndarray, tokens: int) -> dict[str, dict[str, Any]]:
    """One round: each model's prefill seconds, seconds of each of `tokens` steps, and what it generated."""
    lanes = {name: new_lane(model, 1) for name, model in models.items()}
    found: dict[str, dict[str, Any]] = {name: {"steps": [], "ids": []} for name in models}
    for name, lane in lanes.items():
        start = time.perf_counter()
        logits = lane.run(prompt)["logits"]
        found[name] |= {"prefill": time.perf_counter() - start, "ids": [int(logits[0, -1].argmax())]}
    for block in range(0, tokens, BLOCK):
        for name in list(lanes) if block // BLOCK % 2 else list(lanes)[::-1]:
            for _ in range(min(BLOCK, tokens - block)):
                _step(lanes[name], found[name])
    return found


def _step(lane: Lane, found: dict[str, Any]) -> None:
    start = time.perf_counter()
    logits = lane.run(np.array([[found["ids"][-1]]]))["logits"]
    found["steps"].append(time.perf_counter() - start)
    found["ids"].append(int(logits[0, -1].argmax()))


def measure(models: dict[str, Opened], vocab: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Medians over all rounds, and the ratio of speeds a round (ours over theirs)."""
    prompt = np.random.default_rng(0).integers(0, vocab, (1, 64))
    decode(models, prompt, 4)
    results = [decode(models, prompt, tokens) for _ in range(rounds)]
    ratios = [median(r[THEIRS]["steps"]) / median(r[OURS]["steps"]) for r in results]
    return {
        "step_ms": {name: 1e3 * median([s for r in results for s in r[name]["steps"]]) for name in models},
        "prefill_ms": {name: 1e3 * median([r[name]["prefill"] for r in results]) for name in models},
        "ratio": median(ratios),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "same_tokens": all(r[OURS]["ids"] == r[THEIRS]["ids"] for r in results),
    }


def report(result: dict[str, Any], prompt: int = 64) -> None:
    """The table, the ratio and the bound."""
    rows = []
    for name, step in result["step_ms"].items():
        share = result["bound_ms"] / step
        rows.append([name, step, 1e3 / step, f"{share:.0%}", 1e3 * prompt / result["prefill_ms"][name]])
    print_table(["model", "ms a token", "tokens/s", "of the bound", "prefill tokens/s"], rows)
    print(f"decode ratio {result['ratio']:.3f} (required {REQUIRED}), a round: {result['ratios']}")
    print(f"same greedy tokens: {'yes' if result['same_tokens'] else 'no'}")
    print(
        f"bound: {result['weight_bytes'] / 1e6:.0f} MB of weights a token at {result['bandwidth_gbs']:.1f} GB/s "
        f"= {result['bound_ms']:.1f} ms"
    )
    print("machine:", ", ".join(f"{key} {value}" for key, value in result["machine"].items()))


def main() -> int:
    """Exit code 1 where the ratio misses what is required."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="Hugging Face directory of a dense model")
    parser.add_argument("--work", type=Path, help="where the two models are made and kept; default: a temporary folder")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: every core of the process")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on the last line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() if options.work is None else nullcontext(options.work) as work:
        bundle, genai = prepare(options.source, Path(work))
        spec = ModelSpec.load(bundle)
        models = {name: opened(p, spec, options.threads) for name, p in ((OURS, bundle), (THEIRS, genai))}
        result = measure(models, spec.decoder.vocab_size, options.tokens, options.rounds)
    weight_bytes, bandwidth = 4 * parameter_counts(spec)["parameters_active"], read_bandwidth()
    result |= {"weight_bytes": weight_bytes, "bandwidth_gbs": bandwidth / 1e9, "tokens": options.tokens}
    result |= {"bound_ms": 1e3 * weight_bytes / bandwidth, "machine": machine() | {"ort": onnxruntime.__version__}}
    report(result)
    if options.json:
        print_json(result)
    return 0 if result["ratio"] >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
