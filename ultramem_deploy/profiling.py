"""Which slots a model reads: accesses of every virtual slot, counted on real text.

A profile is a safetensors file: `accesses.{layer}` int64 [virtual slots], and in its metadata the retrieval that it
belongs to, so that `fold --order frequency` never packs rows by another model's habits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import Checkpoint, read_header
from .checkpoint.files import write_atomic
from .errors import InputError
from .runtime.opening import open_runner
from .runtime.tokenizer import Tokenizer
from .spec import ModelSpec
from .text import load_corpus, read_text

WINDOW = 256
CHARACTERS = 32
"""No tokenizer in use needs more of them for a token, on average: of a large file only the beginning is encoded."""
IDENTITY = "retrieval"
HOTTEST = (0.01, 0.1)
MAP_SIDE = 256
Progress = Callable[[int, int, str], None]


def profile(
    model: Path,
    text: Path | None = None,
    tokens: int = 8192,
    runtime: str | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Run `model` on the first `tokens` tokens of `text` (default: the Python language reference) and count.

    Returns the report (see `report`) and int64 [virtual slots] of each memory layer. Raises InputError for a model
    without memory layers or tokenizer, and for a text of fewer than two tokens.
    """
    runner = open_runner(model, runtime, tables="mapped")
    spec = runner.spec
    if spec is None or not spec.memory:
        raise InputError(f"profile: {model.name} has no memory layers, so no slots to count")
    name, content = _text(text)
    ids = np.asarray(Tokenizer(model).encode(content[: CHARACTERS * tokens])[:tokens], dtype=np.int64)
    if len(ids) < 2:
        raise InputError(f"--text: {name}: holds {len(ids)} tokens; at least 2 are needed")
    counts = [np.zeros(layer.virtual_slots, np.int64) for layer in spec.memory]
    windows = np.split(ids, range(WINDOW, len(ids), WINDOW))
    for done, window in enumerate(windows, 1):
        for layer, seen in zip(runner.trace(window[None]).layers, counts, strict=True):
            seen += np.bincount(layer.indices.reshape(-1), minlength=len(seen))
        if progress:
            progress(done, len(windows), "counting")
    layers = [report(index, seen) for index, seen in enumerate(counts)]
    return {"text": name, "tokens": len(ids), "runtime": runner.name, "layers": layers}, counts


def _text(path: Path | None) -> tuple[str, str]:
    if path is not None:
        return path.name, read_text(path)
    corpus = load_corpus()
    return corpus.name, "\n\n".join((*corpus.train, *corpus.held_out))


def report(index: int, counts: np.ndarray) -> dict[str, Any]:
    """One layer: how many slots were never read, what share of the accesses the hottest take, and a histogram.

    histogram: for 0, 1, 2-3, 4-7, ... accesses the number of slots.
    """
    total, ranked = int(counts.sum()), np.sort(counts)[::-1]
    bits = np.frexp(counts.astype(np.float64))[1]
    edges = ["0", "1", *(f"{1 << b}-{(2 << b) - 1}" for b in range(1, int(bits.max())))]
    return {
        "layer": index,
        "virtual_slots": len(counts),
        "accesses": total,
        "dead_slots": int((counts == 0).sum()),
        "most_accesses": int(ranked[0]),
        "hottest_share": {f"{part:.0%}": share(ranked, part, total) for part in HOTTEST},
        "histogram": dict(zip(edges, np.bincount(bits, minlength=len(edges)).tolist(), strict=True)),
    }


def share(ranked: np.ndarray, part: float, total: int) -> float:
    """Share of `total` accesses that the first `part` of slots take; `ranked` descends."""
    return float(ranked[: max(1, round(part * len(ranked)))].sum() / max(1, total))


def save(path: Path, spec: ModelSpec, counts: list[np.ndarray], told: dict[str, Any]) -> None:
    """Write a profile. Raises InputError where the file cannot be written."""
    from safetensors.numpy import save as serialized

    metadata = {IDENTITY: retrieval_identity(spec), "text": str(told["text"]), "tokens": str(told["tokens"])}
    write_atomic(path, serialized({_name(index): seen for index, seen in enumerate(counts)}, metadata))


def load(path: Path, spec: ModelSpec) -> list[np.ndarray]:
    """The counts in a profile of a model that retrieves as `spec` does, int64 [virtual slots] a layer.

    Raises InputError for a file that is no profile, or that of another model.
    """
    held, metadata = read_header(path)
    found = metadata.get(IDENTITY)
    names = [_name(index) for index in range(len(spec.memory))]
    if found is None or any(name not in held or held[name].dtype != "int64" for name in names):
        raise InputError(f"--profile: {path}: not a profile; make one with `ultramem-deploy profile MODEL --out FILE`")
    shapes = [held[name].shape for name in names] == [(layer.virtual_slots,) for layer in spec.memory]
    if found != retrieval_identity(spec) or not shapes:
        raise InputError(f"--profile: {path}: counts the slots of another model; profile this one")
    checkpoint = Checkpoint.open(path)
    return [np.array(checkpoint.array(name)) for name in names]


def _name(index: int) -> str:
    return f"accesses.{index}"


def retrieval_identity(spec: ModelSpec) -> str:
    """SHA-256 of what a virtual index means: the retrieval of the memory layers, which no fold changes."""
    grids = [(s.kind, s.scoring, s.rank, s.row_keys, s.col_keys, s.key_width, s.heads, s.top_m) for s in spec.memory]
    return hashlib.sha256(json.dumps(grids).encode()).hexdigest()


def plot(path: Path, spec: ModelSpec, counts: list[np.ndarray]) -> None:
    """A heat map of each layer's grid of row and column keys, PNG; colours are log(1 + accesses of a cell).

    Raises InputError where the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(counts) + 1, 4), layout="constrained")
    axes = figure.subplots(1, len(counts), squeeze=False)[0]
    for index, (layer, seen, axis) in enumerate(zip(spec.memory, counts, axes, strict=True)):
        grid = _coarse(seen.reshape(layer.row_keys, layer.col_keys))
        image = axis.imshow(np.log1p(grid), extent=(0, layer.col_keys, layer.row_keys, 0), aspect="auto")
        axis.set(title=f"memory layer {index}", xlabel="column key", ylabel="row key")
        figure.colorbar(image, ax=axis, label="log(1 + accesses)")
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise InputError(f"--plot: {path}: cannot be written: {error.strerror or error}") from None


def _coarse(grid: np.ndarray) -> np.ndarray:
    """Sums over cells, so that neither side has more than `MAP_SIDE` of them."""
    for axis in (0, 1):
        starts = np.unique(
            np.linspace(0, grid.shape[axis], min(MAP_SIDE, grid.shape[axis]), endpoint=False).astype(int)
        )
        grid = np.add.reduceat(grid, starts, axis=axis)
    return grid
