"""`inspect SRC`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..inspection import inspect
from .options import EXISTING, json_option, verb
from .output import console, counted, number, print_json, size

if TYPE_CHECKING:
    from rich.table import Table


_KINDS = {"rows": "with changed rows"}


@verb("inspect", "canonical --json")
@click.argument("src", type=EXISTING)
@json_option
def command(src: Path, as_json: bool) -> None:
    """Say what SRC is: checkpoint, bundle, delta, Hugging Face directory or GGUF file. Reads headers alone."""
    description = inspect(src)
    if as_json:
        print_json(description)
        return
    from rich.text import Text

    out = console()
    out.print(Text(str(src), style="bold"))
    out.print(_facts(description))
    for line in _lineage(description["lineage"]):
        out.print(Text(line))
    if description["memory_layers"]:
        out.print(_layers(description["memory_layers"]))
    for warning in description["warnings"]:
        out.print(Text(f"warning: {warning}", style="yellow"))


def _facts(description: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in _rows(description).items():
        table.add_row(name, value)
    return table


def _rows(d: dict[str, Any]) -> dict[str, str]:
    if "changes" in d:
        kinds = Counter(change["kind"] for change in d["changes"].values())
        changed = ", ".join(f"{count} {_KINDS.get(kind, kind)}" for kind, count in kinds.items())
        return {"family": "delta, for `patch`", "tensors": changed or "none", "size": size(d["bytes"])}
    rows = {
        "family": d["family"] if d["source_family"] == d["family"] else f"{d['family']} (from {d['source_family']})",
        "parameters": f"{d['parameters_total']:,}",
        "in tables": f"{d['parameters_table']:,}",
        "active a token": f"{d['parameters_active']:,}",
        "dtype": d["dtype"] + (f", tables {d['table_dtype']}" if d["table_dtype"] else ""),
        "size": f"{size(d['bytes'])} in {counted(d['tensors'], 'tensor')}, {counted(len(d['files']), 'file')}",
    }
    if d["lineage"]:
        rows["made by"] = " → ".join(entry["stage"] for entry in d["lineage"])
    if "onnx" in d:
        rows["onnx"] = _graph(d["onnx"])
    return rows


def _lineage(lineage: list[dict[str, Any]]) -> list[str]:
    """A line a stage, the earliest first: what it read, its options, and the numbers of its receipt."""
    lines = []
    for entry in lineage:
        options, receipt = entry["options"] or {}, entry["receipt"] or {}
        facts = [f"{name} {_short(value)}" for name, value in options.items()]
        new = {name: value for name, value in receipt.items() if name not in options and _plain(value)}
        proved = [f"{name} {_short(value)}" for name, value in new.items()]
        parts = [", ".join(part) for part in (facts, proved) if part]
        lines.append(f"  {entry['stage']} of {', '.join(entry['source'] or ['?'])}: {'; '.join(parts)}".rstrip(": "))
    return lines


def _plain(value: Any) -> bool:
    return isinstance(value, (int, float, str)) and not isinstance(value, bool) and value != ""


def _short(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, (list, tuple)):
        counts = Counter(map(str, value))
        return " + ".join(f"{count} × {item}" if count > 1 else item for item, count in counts.items())
    return str(value)


def _graph(graph: dict[str, Any]) -> str:
    opsets = ", ".join(f"{domain} {version}" for domain, version in graph["opset"].items())
    ports = f"{len(graph['inputs'])} inputs, {len(graph['outputs'])} outputs"
    return f"{sum(graph['operators'].values())} nodes, {ports}; opsets {opsets}"


def _layers(layers: list[dict[str, Any]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="memory layers", title_justify="left")
    for title in ("read:write", "kind", "table", "slots", "virtual", "width", "heads*top", "rank", "cores", "folded"):
        table.add_column(title, justify="left" if title in ("kind", "table") else "right")
    for layer in layers:
        table.add_row(
            f"{layer['read_block']}:{layer['write_block']}",
            layer["kind"],
            layer["table"],
            f"{layer['physical_slots']:,}",
            f"{layer['virtual_slots']:,}",
            str(layer["value_width"]),
            f"{layer['heads']}*{layer['top_m']}",
            str(layer["rank"]),
            str(layer["cores"]),
            _folded(layer),
        )
    return table


def _folded(layer: dict[str, Any]) -> str:
    parts = ["expanded"] * layer["folded"] + ["rank-1 keys"] * layer["rank_one_keys"]
    return ", ".join(parts) or "no"
