"""Decode of our export (--target ort) against the model that ONNX Runtime GenAI's builder makes of the same weights.

    python benchmarks/decode_genai.py [--source HF_DIRECTORY] [--work DIRECTORY] [--tokens 128] [--rounds 9] [--json]

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
from benchmarks.sources import saved_source
from ultramem_deploy.converters.importers import import_checkpoint
from ultramem_deploy.converters.onnx import export_onnx
from ultramem_deploy.planning import parameter_counts
from ultramem_deploy.runtime.ort_cache import Lane, new_lane
from ultramem_deploy.runtime.ort_model import Opened, open_model
from ultramem_deploy.spec import ModelSpec

OURS, THEIRS = "ultramem-deploy", "genai builder"
REQUIRED = 0.95
PROMPT = 64
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


def measure(folders: dict[str, Path], spec: ModelSpec, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over all rounds, and the ratio of speeds (ours over theirs) of the median rounds.

    Each round opens both models anew: where the weights come to lie in memory is worth ten percent either way.
    """
    prompt = np.random.default_rng(0).integers(0, spec.decoder.vocab_size, (1, PROMPT))
    results = []
    for turn in range(options.rounds):
        order = list(folders) if turn % 2 else list(folders)[::-1]
        models = {name: opened(folders[name], spec, options.threads) for name in order}
        decode(models, prompt, BLOCK)
        results.append(decode(models, prompt, options.tokens))
    medians = {name: [median(r[name]["steps"]) for r in results] for name in folders}
    ratios = [theirs / ours for ours, theirs in zip(medians[OURS], medians[THEIRS], strict=True)]
    steps = {name: [s for r in results for s in r[name]["steps"]] for name in folders}
    fast = {name: 1e3 * float(np.quantile(seconds, 0.1)) for name, seconds in steps.items()}
    return {
        "step_ms": {name: 1e3 * median(seconds) for name, seconds in medians.items()},
        "fast_step_ms": fast,
        "prefill_ms": {name: 1e3 * median([r[name]["prefill"] for r in results]) for name in folders},
        "ratio": median(medians[THEIRS]) / median(medians[OURS]),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "fast_ratio": fast[THEIRS] / fast[OURS],
        "same_tokens": all(r[OURS]["ids"] == r[THEIRS]["ids"] for r in results),
    }


def report(result: dict[str, Any]) -> None:
    """The table, the ratio and the bound."""
    rows = []
    for name, step in result["step_ms"].items():
        share = result["bound_ms"] / step
        prefill = 1e3 * PROMPT / result["prefill_ms"][name]
        rows.append([name, step, result["fast_step_ms"][name], 1e3 / step, f"{share:.0%}", prefill])
    print_table(["model", "ms a token", "fastest 10%", "tokens/s", "of the bound", "prefill tokens/s"], rows)
    print(f"decode ratio {result['ratio']:.3f} (required {REQUIRED}), a round: {result['ratios']}")
    print(f"ratio of the fastest 10% of steps, which a busy machine disturbs least: {result['fast_ratio']:.3f}")
    print(f"same greedy tokens: {'yes' if result['same_tokens'] else 'no'}")
    print(
        f"bound: {result['weight_bytes'] / 1e6:.0f} MB of weights a token at {result['bandwidth_gbs']:.1f} GB/s "
        f"= {result['bound_ms']:.1f} ms"
    )
    print("machine:", ", ".join(f"{key} {value}" for key, value in result["machine"].items()))


def main() -> int:
    """Exit code 1 where the ratio misses what is required."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="Hugging Face directory of a dense model; default: SmolLM2-135M")
    parser.add_argument("--work", type=Path, help="where the two models are made and kept; default: a temporary folder")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens a round")
    parser.add_argument("--rounds", type=int, default=9, help="each opens both models anew")
    parser.add_argument("--threads", type=int, help="default: every core of the process")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on the last line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() if options.work is None else nullcontext(options.work) as work:
        bundle, genai = prepare(options.source or saved_source(), Path(work))
        spec = ModelSpec.load(bundle)
        result = measure({OURS: bundle, THEIRS: genai}, spec, options)
    weight_bytes, bandwidth = 4 * parameter_counts(spec)["parameters_active"], read_bandwidth()
    result |= {"weight_bytes": weight_bytes, "bandwidth_gbs": bandwidth / 1e9, "tokens": options.tokens}
    result |= {"bound_ms": 1e3 * weight_bytes / bandwidth, "machine": machine() | {"ort": onnxruntime.__version__}}
    report(result)
    if options.json:
        print_json(result)
    return 0 if result["ratio"] >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
