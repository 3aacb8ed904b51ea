"""A bundle with a table of 10 GB: time to its first token, memory by the rows touched, sessions over one copy.

    make cpp && python benchmarks/cpp/table.py [--quick] [--directory DIR] [--prefix build/cpp] [--json]

The model is random (four blocks, one memory layer, rows of 2 KiB); every page of its table has bytes of its own and
none is in the page cache when a program starts. Each figure is of a fresh process, with the table mapped and with a
resident copy (docs/kernels.md). Targets, mapped: the first token within 1 s of the program's start; file pages grow
by no more than what the kernel maps around a row that is touched. Resident: eight sessions hold the table once. Needs
11 GB of disk, --quick 3 GB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.big import forget
from benchmarks.common import machine, print_json, print_table
from benchmarks.cpp.load import PROMPT, ROOT, Server
from benchmarks.memory_model import decoder, memory_layer, model, write_source
from ultramem_deploy.converters.bundle import make_bundle
from ultramem_deploy.converters.onnx import export_onnx

WIDTH, TOP_M, HEADS, VOCABULARY, TOKENS, SESSIONS, ROUNDS = 1024, 32, 2, 4096, 16, 8, 3
SERVED = ("one_session", "eight_sessions")
FIRST_TOKEN_MS = 1000.0
AROUND = 64 << 10
"""Bytes that the kernel maps around a page that is touched, where they are in its cache."""


@click.command()
@click.option("--quick", is_flag=True, help="A table of 2 GB.")
@click.option("--directory", default=".", type=click.Path(exists=True, path_type=Path), help="Where files lie.")
@click.option("--prefix", type=click.Path(path_type=Path), default=ROOT / "build/cpp", help="Where make cpp installed.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object, last line.")
def main(quick: bool, directory: Path, prefix: Path, as_json: bool) -> None:
    """Exit code 1 where a target is missed."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="ultramem-table-") as folder:
        result = measure(_bundle(Path(folder), 1000 if quick else 2210), prefix)
    print(f"a table of {result['table_gb']:.1f} GB; MB of RSS before and after the first request of every session")
    print_table(("tables", "first token ms", *SERVED), [_row(mode, result[mode]) for mode in ("mapped", "resident")])
    if as_json:
        print_json(result | {"machine": machine()})
    sys.exit(0 if result["passed"] else 1)


def measure(bundle: Path, prefix: Path) -> dict[str, Any]:
    """The figures of a bundle in both modes; sizes in MB."""
    table = max(bundle.rglob("*.safetensors"), key=lambda file: file.stat().st_size)
    result: dict[str, Any] = {"table_gb": table.stat().st_size / 1e9}
    for mode, rounds in (("mapped", ROUNDS), ("resident", 1)):
        os.environ["ULTRAMEM_TABLES"] = mode
        starts = [_start(prefix, bundle, table) for _ in range(rounds)]
        result[mode] = {
            "time_to_first_token_ms": sorted(start["time_to_first_token_ms"] for start in starts)[rounds // 2],
            "rss_mb": max(start["rss_mb"] for start in starts),
            "one_session": _served(prefix, bundle, table, 1),
            "eight_sessions": _served(prefix, bundle, table, SESSIONS),
        }
    # Rows of one sequence, and what lies around each; a row may begin in one window and end in the next.
    result["most_mb_of_rows"] = most = (TOKENS + len(PROMPT)) * TOP_M * HEADS * 2 * AROUND / 1e6
    mapped, resident = result["mapped"], result["resident"]["eight_sessions"]["after"]
    grown = [mapped[name]["after"]["RssFile"] - mapped[name]["before"]["RssFile"] for name in SERVED]
    held = all(one <= limit for one, limit in zip(grown, (most, SESSIONS * most), strict=True))
    once = resident["RssAnon"] + resident["RssFile"] < 1.5e3 * result["table_gb"]
    return result | {"passed": mapped["time_to_first_token_ms"] <= FIRST_TOKEN_MS and held and once}


def _row(mode: str, found: dict[str, Any]) -> list[str]:
    sizes = [[sum(found[name][when].values()) for when in ("before", "after")] for name in SERVED]
    return [mode, f"{found['time_to_first_token_ms']:.0f}", *(f"{a:,.0f} to {b:,.0f}" for a, b in sizes)]


def _bundle(folder: Path, side: int) -> Path:
    """A bundle whose table has side^2 rows."""
    spec = model(decoder(WIDTH, 4, 16, 2048, VOCABULARY, 512), [memory_layer(side, side, 1, TOP_M, 256)], WIDTH)
    write_source(folder / "model", spec)
    _write_tokenizer(folder / "model")
    export_onnx(folder / "model", folder / "onnx")
    make_bundle(folder / "onnx", folder / "bundle", with_plugins=True)
    return folder / "bundle"


def _write_tokenizer(directory: Path) -> None:
    """Every byte a token: the server speaks text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))


def _start(prefix: Path, bundle: Path, table: Path) -> dict[str, float]:
    """`minimal` from its start, the table on disk alone."""
    forget(table)
    command = [prefix / "bin" / "minimal", bundle, "1,2,3,4,5,6,7,8", str(TOKENS)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def _served(prefix: Path, bundle: Path, table: Path, sessions: int) -> dict[str, dict[str, float]]:
    """Memory of the server before its first request, and after one of each session, all at once."""
    forget(table)
    server = Server(prefix / "bin" / "server", bundle, sessions)
    before = server.memory()
    with ThreadPoolExecutor(sessions) as pool:
        list(pool.map(lambda _: server.complete(TOKENS, False), range(sessions)))
    after = server.memory()
    server.end()
    return {"before": before, "after": after}


if __name__ == "__main__":
    main()
