"""tensorrt-rtx needs no GPU to build: it builds the engine of a small model of each memory kind, and of the demo."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ultramem_deploy as um
from tests import builders
from ultramem_deploy.spec import ModelSpec

from .built import CHECKOUT

DEMO = CHECKOUT / "demo" / "out"
MISSING = "tensorrt-rtx is not installed: pip install tensorrt-rtx-cu13"
KINDS = {
    "ultramem v1": builders.V1,
    "ultramem v1, folded": builders.EXPANDED,
    "ultramem v2": builders.V2,
    "memory+": builders.PLUS,
    "PKM": builders.PKM,
    "a dense decoder": builders.PLAIN,
}
DEMOS = ("healed", "folded")


def installed() -> bool:
    return importlib.util.find_spec("tensorrt_rtx") is not None


def build_all(demo: Path) -> Iterator[tuple[str, str | None]]:
    """Build every engine that can be built here: its name, and what is wrong with it, or None."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, spec) in enumerate(KINDS.items()):
            source = builders.write_checkpoint(Path(folder) / str(number), spec)
            yield name, problem_of(source, Path(folder) / f"{number}.engine", "1x1,1x8,2x32")
    for name in DEMOS:
        if (demo / name / "config.json").is_file():
            with tempfile.TemporaryDirectory(dir=demo) as folder:
                yield f"the demo, {name}", problem_of(demo / name, Path(folder) / "demo.engine", None, dtype="bfloat16")


def problem_of(source: Path, engine: Path, shapes: str | None, **options: Any) -> str | None:
    """Build one engine and look at what it holds."""
    try:
        result = um.build(source, engine, backend="tensorrt-rtx", shapes=shapes, **options)
    except um.UltraMemError as error:
        return str(error)
    spec = ModelSpec.load(source)
    inputs = {port["name"] for port in result["inputs"]}
    outputs = {port["name"] for port in result["outputs"]}
    layers = range(spec.decoder.num_layers)
    cache = {f"{i}.{part}" for i in layers for part in ("key", "value")}
    tables = {name for name in result["tables"] if name.startswith("tables.")}
    wanted_inputs = {"input_ids", "attention_mask", *(f"past_key_values.{name}" for name in cache), *result["tables"]}
    found = {
        "engine": result["engine_bytes"] == engine.stat().st_size > 0,
        "inputs": inputs == wanted_inputs,
        "outputs": outputs == {"logits", *(f"present.{name}" for name in cache)},
        "profiles": [profile["name"] for profile in result["profiles"]] == ["prefill", "decode"],
        "tables": len(tables) >= len(spec.tables),
        "layers": result["layers"] > len(layers),
    }
    wrong = [name for name, right in found.items() if not right]
    return f"its {', '.join(wrong)} are not as expected" if wrong else None
