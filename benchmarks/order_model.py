"""What `fold --order frequency` gains: pages that a text touches, and bytes that it has read from a disk.

    make demo && python benchmarks/order_model.py [MODEL ...] [--tokens 2048] [--json]

MODEL is a canonical checkpoint with memory layers (default: the demo's, before and after its fold). Its accesses are
profiled on the training part of a text; what is counted is the held-out part, which the profile never saw, in the order
as it was and in order of frequency. Pages of 4 KiB are what a disk reads, pages of 2 MiB what an entry of the TLB
covers on huge pages. Each run is a process of its own, tables mapped and evicted before. See also order.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.big import forget
from benchmarks.common import bytes_read, machine, print_json, print_table
from ultramem_deploy.pipeline import fold, profile
from ultramem_deploy.runtime.tokenizer import Tokenizer
from ultramem_deploy.text import load_corpus

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = (ROOT / "demo/out/healed", ROOT / "demo/out/folded")
PAGES = {"4k": 1 << 12, "2m": 1 << 21}
WINDOW = 256
_CHILD = """
import json, sys
from benchmarks import order_model as order
print(json.dumps(order.touched(order.Path(sys.argv[1]), json.loads(sys.stdin.read()))))
"""


@click.command()
@click.argument("models", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--tokens", default=2048, show_default=True, help="Tokens profiled, and a quarter of them counted.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object, last line.")
def main(models: tuple[Path, ...], tokens: int, as_json: bool) -> None:
    """Compare the order of a table's rows with the order of how often they are read."""
    rows = [row for model in models or DEFAULT for row in compare(model, tokens)]
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    if as_json:
        print_json({"rows": rows, "tokens": tokens // 4, "machine": machine()})


def compare(model: Path, tokens: int) -> list[dict[str, Any]]:
    """One row an order."""
    corpus = load_corpus()
    with tempfile.TemporaryDirectory(dir=model.parent, prefix="ultramem-order-") as folder:
        text, accesses, packed = (Path(folder) / name for name in ("train.txt", "accesses.safetensors", "packed"))
        text.write_text("\n\n".join(corpus.train), encoding="utf-8")
        profile(model, text=text, tokens=tokens, out=accesses)
        fold(model, packed, order="frequency", profile=accesses)
        ids = Tokenizer(model).encode("\n\n".join(corpus.held_out)[: 64 * tokens])[: tokens // 4]
        return [
            {"model": model.name, "order": name, **_alone(path, ids)}
            for name, path in (("as it was", model), ("frequency", packed))
        ]


def _alone(model: Path, ids: list[int]) -> dict[str, Any]:
    command = [sys.executable, "-c", _CHILD, str(model.absolute())]
    result = subprocess.run(command, cwd=ROOT, input=json.dumps(ids), capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def touched(model: Path, ids: list[int]) -> dict[str, Any]:
    """Distinct rows and pages of the value tables that a text reads, and megabytes read from the disk meanwhile."""
    import torch

    import ultramem_deploy

    loaded = ultramem_deploy.load(model, tables="mapped")
    seen: list[list[np.ndarray[Any, Any]]] = [[] for _ in loaded.memory_layers]
    for layer, parts in zip(loaded.memory_layers, seen, strict=True):
        layer.addresses = _recorded(layer.addresses, parts)
    for file in model.glob("*.safetensors"):
        if "table" in file.name:
            forget(file)
    before = bytes_read()
    with torch.inference_mode():
        for start in range(0, len(ids), WINDOW):
            loaded(torch.tensor([ids[start : start + WINDOW]]))
    read = bytes_read() - before
    found = {"rows": 0, **{f"pages_{name}": 0 for name in PAGES}}
    for layer, parts in zip(loaded.spec.memory, seen, strict=True):
        values = loaded.tables[layer.table].values
        table_rows = loaded.spec.tables[layer.table].rows
        rows = np.unique(np.concatenate(parts) % table_rows)
        found["rows"] += len(rows)
        for name, page in PAGES.items():
            found[f"pages_{name}"] += pages(rows, values.nbytes // table_rows, page)
    return found | {"mb_from_disk": read / 1e6}


def _recorded(addresses: Any, into: list[np.ndarray[Any, Any]]) -> Any:
    def record(indices: Any) -> Any:
        found = addresses(indices)
        into.append(found.reshape(-1).numpy())
        return found

    return record


def pages(rows: np.ndarray[Any, Any], size: int, page: int) -> int:
    """How many pages of `page` bytes hold rows (int64, sorted) of `size` bytes each; the first begins with a page."""
    first, last = rows * size // page, ((rows + 1) * size - 1) // page
    reached = np.maximum.accumulate(last)
    # What a row adds begins after the last page of the rows before it.
    begins = np.maximum(first, np.concatenate([[-1], reached[:-1]]) + 1)
    return int(np.maximum(last - begins + 1, 0).sum())


if __name__ == "__main__":
    main()
