"""The main job on real weights: convert, upcycle, heal, fold, export, verify, generate. Run by `make demo`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import ultramem_deploy as um
from ultramem_deploy.cli.bar import shown_progress
from ultramem_deploy.errors import UltraMemError
from ultramem_deploy.runtime.opening import open_runner
from ultramem_deploy.runtime.scoring import decode_rates, perplexity
from ultramem_deploy.runtime.tokenizer import Tokenizer
from ultramem_deploy.text import load_corpus, token_windows

from .measurements import Measurements
from .report import Report, show, write
from .source import source_model

HERE = Path(__file__).parent
OUT = HERE / "out"
PROMPT = "The with statement is used to wrap the execution of a block with methods defined by a context manager."
STEPS = 48
PARITY, FOLD, ONNX = 1e-3, 1e-4, 1e-3
console = Console(width=None if sys.stdout.isatty() else 140)


def main() -> None:
    """Every stage, then every check, then the report; finished work is reused."""
    start = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    source = source_model()
    report = Report(prompt=PROMPT)
    models = make_models(source, report)
    known = Measurements(OUT / "measurements.json")
    check(source, models, known, report)
    measure(models, known, report)
    options = {"prompt": PROMPT, "max_new_tokens": 48, "runtime": "ort"}
    generated = stage("generate", lambda _: um.generate(models["onnx"], **options))
    report.text = generated["text"]
    console.print(f"\n[bold]{PROMPT}[/bold]{generated['text']}\n", highlight=False)
    report.seconds = time.perf_counter() - start
    fill_rows(models, report)
    show(report, console)
    console.print(f"wrote {write(report, HERE).relative_to(HERE.parent)} after {report.seconds:.0f} s")


def stage(title: str, work: Callable[[Any], Any]) -> Any:
    """Run `work(progress)` under a progress bar and say how long it took."""
    start = time.perf_counter()
    with shown_progress(title) if sys.stderr.isatty() else nullcontext() as progress:
        result = work(progress)
    console.print(f"{title}: {time.perf_counter() - start:.1f} s")
    return result


def make_models(source: Path, report: Report) -> dict[str, Path]:
    """Every artifact of the demo, each made from the one before."""
    names = ("dense", "upcycled", "healed", "folded", "onnx", "onnx-dense", "onnx-unfolded")
    m = {name: OUT / name for name in names}
    stage("convert", lambda p: um.convert(source, m["dense"], progress=p))
    stage("upcycle", lambda p: um.upcycle(m["dense"], m["upcycled"], method="identity", progress=p))
    report.heal = stage("heal", lambda p: um.heal(m["upcycled"], m["healed"], steps=STEPS, progress=p))
    stage("fold", lambda p: um.fold(m["healed"], m["folded"], mode="expand", progress=p))
    for name, origin in (("onnx", "folded"), ("onnx-dense", "dense"), ("onnx-unfolded", "healed")):
        stage(f"export {origin}", lambda p, name=name, origin=origin: um.export(m[origin], m[name], progress=p))
    return m


def check(source: Path, m: dict[str, Path], known: Measurements, report: Report) -> None:
    """Each stage against the one before, to the limits that this project promises; the first miss ends the demo."""
    comparisons = (
        ("transformers ↔ converted", source, m["dense"], None, PARITY),
        ("converted ↔ upcycled, step 0", m["dense"], m["upcycled"], None, 0.0),
        ("unfolded ↔ folded", m["healed"], m["folded"], None, FOLD),
        ("folded ↔ ONNX, function bodies", m["folded"], m["onnx"], "ort-bodies", ONNX),
        ("folded ↔ ONNX, custom operators", m["folded"], m["onnx"], "ort", ONNX),
        ("unfolded ↔ ONNX unfolded", m["healed"], m["onnx-unfolded"], "ort", ONNX),
    )
    for name, left, right, runtime, limit in comparisons:
        title = f"verify {name}"
        report.checks.append((name, known.get(title, [left, right], _verify(title, left, right, runtime, limit))))


def _verify(title: str, left: Path, right: Path, runtime: str | None, limit: float) -> Callable[[], Any]:
    options = {"tokens": 512, "max_abs": limit, "runtime": runtime}
    return lambda: stage(title, lambda p: um.verify(left, right, **options, progress=p))


def measure(m: dict[str, Path], known: Measurements, report: Report) -> None:
    """Perplexity on 4,096 fixed held-out tokens, and decoding speed by path."""
    tokenizer, corpus = Tokenizer(m["dense"]), load_corpus()
    windows = token_windows(tokenizer, corpus.held_out, 512, 8)
    paths = {
        "dense, PyTorch": (m["dense"], "torch"),
        "healed, PyTorch": (m["healed"], "torch"),
        "folded, PyTorch": (m["folded"], "torch"),
        "folded, ONNX": (m["onnx"], "ort"),
    }
    for name, (path, runtime) in paths.items():
        report.perplexities[name] = known.get(f"perplexity {name}", [path], _perplexity(name, path, runtime, windows))
    speed = {
        "dense, ONNX": (m["onnx-dense"], "ort"),
        "unfolded, ONNX": (m["onnx-unfolded"], "ort"),
        "folded, ONNX": (m["onnx"], "ort"),
        "folded, ONNX bodies": (m["onnx"], "ort-bodies"),
        "folded, PyTorch": (m["folded"], "torch"),
    }
    prompt = windows[0, :32].tolist()

    def rates() -> dict[str, float]:
        runners = {name: open_runner(*pair) for name, pair in speed.items()}
        return stage("decoding speed", lambda _: decode_rates(runners, prompt, 32, 3))

    report.rates = known.get("rates", [path for path, _ in speed.values()], rates)


def _perplexity(name: str, path: Path, runtime: str, windows: np.ndarray) -> Callable[[], Any]:
    return lambda: stage(f"perplexity {name}", lambda p: perplexity(open_runner(path, runtime), windows, p))


def fill_rows(m: dict[str, Path], report: Report) -> None:
    """The closing table."""
    errors = {name: result["max_abs_logit_error"] for name, result in report.checks}
    rows = (
        ("dense, PyTorch", m["dense"], "transformers", errors["transformers ↔ converted"]),
        ("dense, ONNX", m["onnx-dense"], "", None),
        ("healed, PyTorch", m["healed"], "", None),
        ("unfolded, ONNX", m["onnx-unfolded"], "healed, PyTorch", errors["unfolded ↔ ONNX unfolded"]),
        ("folded, PyTorch", m["folded"], "healed, PyTorch", errors["unfolded ↔ folded"]),
        ("folded, ONNX", m["onnx"], "folded, PyTorch", errors["folded ↔ ONNX, custom operators"]),
        ("folded, ONNX bodies", m["onnx"], "folded, PyTorch", errors["folded ↔ ONNX, function bodies"]),
    )
    for name, path, against, error in rows:
        facts = um.inspect(path)
        tables = facts["parameters_table"] * 4
        report.rows.append(
            (
                name,
                f"{facts['parameters_total'] / 1e6:.1f} M",
                f"{tables / 1e6:.0f} MB",
                f"{facts['bytes'] / 1e6:.0f} MB",
                _number(report.perplexities.get(name)),
                _number(report.rates.get(name)),
                f"{error:.1e} ({against})" if error is not None else "",
            )
        )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    try:
        main()
    except UltraMemError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: run `make demo` again to continue")
