"""Converts an official UltraMem v1 `model.pt` with two memory layers of P1's 1.6B model: 25.7 million virtual values.

    python benchmarks/big_convert.py [--quick] [--budget 1GiB] [--dtype keep] [--directory DIR] [--json]

Targets: peak RSS under the budget + 500 MB; bytes a second at least 0.7 of plain copying of the same bytes (page cache
and fsync; both read a file that is not in the cache). The source is `config.yaml` and a bfloat16 `model.pt` that
torch.save writes here from mapped tables. Needs 41 GB of disk, --quick 2 GB; the last line is JSON with --json.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import yaml

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.big import big_options, copy_seconds, forget, judged, report, run_alone, workspace
from ultramem_deploy.units import parse_bytes

LAYERS, HIDDEN, HEADS, KEY_WIDTH, VALUE_WIDTH = 2, 2048, 2, 512, 1024
CONFIG: dict[str, Any] = {
    "d_model": HIDDEN, "n_layers": LAYERS, "n_heads": 16, "mlp_hidden_size": 64, "weight_tying": True,
    "layer_norm_type": "rms", "layer_norm_with_affine": True, "attention_layer_norm": True,
    "attention_layer_norm_with_affine": True, "include_bias": False, "rope": True, "max_sequence_length": 64,
    "vocab_size": 64, "embedding_size": 64, "mem_insert_way": "full", "mem_type": "ultramem_v1",
    "mem_kdim": KEY_WIDTH, "mem_vdim": VALUE_WIDTH, "mem_knn": 42, "mem_head": HEADS, "mem_pre_vdim": 0,
}  # fmt: skip


@big_options
@click.option("--dtype", type=click.Choice(["keep", "float16", "float32"]), default="keep", show_default=True)
def main(quick: bool, budget: str, jobs: int | None, directory: Path, as_json: bool, dtype: str) -> None:
    """Measure `convert` of a large official checkpoint."""
    knum = 320 if quick else 1792
    tables = LAYERS * knum**2 * VALUE_WIDTH * 2
    with workspace(directory, 3 * tables * (2 if dtype == "float32" else 1) + 10**9, "big-convert") as folder:
        _write_official(folder / "source", knum)
        budget_bytes = parse_bytes(budget, "--budget")
        for file in (folder / "source").iterdir():
            forget(file)
        found = run_alone(
            "convert", src=folder / "source", out=folder / "out", dtype=dtype, memory_budget=budget_bytes, jobs=jobs
        )
        written = list((folder / "out").glob("*.safetensors"))
        moved = sum(file.stat().st_size for file in written)
        others = {"copy": copy_seconds(written, folder)}
        report({"virtual_values": LAYERS * 4 * knum**2} | judged(found, budget_bytes, moved, others), as_json)


def _write_official(directory: Path, knum: int) -> None:
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump({"model": CONFIG | {"mem_knum": knum}}))
    table = directory / "table"
    rng = np.random.default_rng(0)
    with open(table, "wb") as stream:
        for start in range(0, knum**2, 1 << 13):
            rows = rng.standard_normal((min(1 << 13, knum**2 - start), VALUE_WIDTH), dtype=np.float32)
            stream.write(torch.from_numpy(rows).bfloat16().view(torch.uint8).numpy().data)
    # Memory-mapped: torch.save writes the pages as it goes, and holds none of them.
    values = [torch.from_file(str(table), size=knum**2 * VALUE_WIDTH, dtype=torch.bfloat16) for _ in range(LAYERS)]
    torch.save(_state(knum, [one.view(knum**2, VALUE_WIDTH) for one in values]), directory / "model.pt")
    table.unlink()


def _state(knum: int, values: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The official names and shapes (`olmo/model.py`, `olmo/ultramem_layer.py`), random numbers in bfloat16."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.05).bfloat16()

    head = HIDDEN // CONFIG["n_heads"]
    state = {"wte.weight": random(64, HIDDEN), "ln_f.weight": random(HIDDEN)}
    for i in range(LAYERS):
        width = CONFIG["mlp_hidden_size"]
        block = {
            "attn_norm.weight": (HIDDEN,), "ff_norm.weight": (HIDDEN,), "q_norm.weight": (head,),
            "k_norm.weight": (head,), "att_proj.weight": (3 * HIDDEN, HIDDEN), "attn_out.weight": (HIDDEN, HIDDEN),
            "ff_proj.weight": (width, HIDDEN), "ff_out.weight": (HIDDEN, width // 2),
        }  # fmt: skip
        memory = {
            "query_norm.weight": (KEY_WIDTH,), "keys_norm.weight": (KEY_WIDTH,),
            "query_proj.weight": (2 * KEY_WIDTH, HIDDEN), "values_proj.weight": (HIDDEN, 4 * VALUE_WIDTH),
            "keys": (HEADS, 2, 2 * knum, KEY_WIDTH, 2), "tucker_core.0": (HEADS, 2, 2), "tucker_core.1": (HEADS, 2, 2),
            "tucker_core_u": (1, HEADS, 1, 2), "tucker_core_v": (1, HEADS, 1, 2),
        }  # fmt: skip
        state |= {f"blocks.{i}.{name}": random(*shape) for name, shape in block.items()}
        state |= {f"mem_blocks.{i}.{name}": random(*shape) for name, shape in memory.items()}
        state[f"mem_blocks.{i}.shuffle_index"] = torch.randperm(4 * knum**2, generator=generator)
        state[f"mem_blocks.{i}.values_for_look_up"] = values[i]
    return {f"transformer.{name}": tensor for name, tensor in state.items()}


if __name__ == "__main__":
    main()
