"""What a model is made of: sizes, memory layers, origin. Read from headers and configurations alone (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import read_provenance
from .checkpoint.header import itemsize
from .converters.importers import ImportPlan, Source, open_source, plan_source
from .errors import InputError
from .layout import tensor_layout
from .planning import parameter_counts
from .runtime.engine_manifest import ENGINE_FILE
from .spec import MemoryLayerSpec, ModelSpec

ONNX_NAME = "model.onnx"
DELTA_NAME = "delta.json"


@dataclass(frozen=True)
class _Stored:
    """One tensor as the source holds it."""

    role: str
    dtype: str
    elements: int
    nbytes: int


def inspect(path: str | Path) -> dict[str, Any]:
    """Describe the model at `path`: canonical checkpoint, exported bundle, Hugging Face directory or GGUF file.

    dtype is that of most dense weights, table_dtype that of most table rows (None without tables); bytes count the
    tensors as stored. Of a delta: family, stage, bytes, files, the changed tensors and the lineage alone. Raises
    InputError or ConfigError for what is no such model, or a damaged one.
    """
    where = Path(path)
    if (where / DELTA_NAME).is_file():
        return describe_delta(where)
    if (where / ENGINE_FILE).is_file():
        raise InputError(
            f"{where}: a bundle for TensorRT, whose weights lie in its engine: inspect the NAME.model that it was "
            f"built from, or run `ultramem-deploy doctor {where}`"
        )
    source = open_source(where)
    plan = plan_source(source)
    tensors = _stored(source, plan)
    provenance = read_provenance(where) if where.is_dir() else None
    description: dict[str, Any] = {
        "family": plan.family,
        "source_family": plan.spec.source_family or plan.family,
        "stage": provenance["stage"] if provenance else None,
        **parameter_counts(plan.spec),
        "dtype": _most_common(t for t in tensors if t.role == "dense"),
        "table_dtype": _most_common(t for t in tensors if t.role == "table"),
        "bytes": sum(t.nbytes for t in tensors),
        "tensors": len(tensors),
        "files": [{"name": file.name, "bytes": file.stat().st_size} for file in source.weight_files],
        "memory_layers": [memory_layer(layer, plan.spec) for layer in plan.spec.memory],
        "warnings": [*plan.warnings, *_warnings(source, plan, tensors)],
        "lineage": _lineage(provenance),
    }
    if (where / ONNX_NAME).is_file():
        description["onnx"] = describe_onnx(where / ONNX_NAME)
    return description


def describe_delta(where: Path) -> dict[str, Any]:
    """What `diff` wrote: `changes` as it listed them, and the stages behind both sides."""
    from .converters.delta.stage import read_delta

    changes = {name: {k: entry[k] for k in ("kind", "rows")} for name, entry in read_delta(where)["tensors"].items()}
    files = sorted(where.glob("*.safetensors"))
    return {
        "family": "delta",
        "stage": "diff",
        "bytes": sum(file.stat().st_size for file in files),
        "tensors": len(changes),
        "files": [{"name": file.name, "bytes": file.stat().st_size} for file in files],
        "changes": changes,
        "memory_layers": [],
        "warnings": [],
        "lineage": _lineage(read_provenance(where)),
    }


def memory_layer(layer: MemoryLayerSpec, spec: ModelSpec) -> dict[str, Any]:
    """The sizes of one memory layer; physical_slots are the rows of its window of the table.

    biases names its linear layers that have one; empty_slot is the physical position that counts as zero, or None.
    """
    biases = {"query": layer.query_bias, "output_gate": layer.output_gate_bias, "output": layer.output_bias}
    return {
        "read_block": layer.read_block,
        "write_block": layer.write_block,
        "kind": layer.kind,
        "physical_slots": layer.slots,
        "virtual_slots": layer.virtual_slots,
        "value_width": spec.tables[layer.table].value_width,
        "top_m": layer.top_m,
        "heads": layer.heads,
        "rank": layer.key_rank,
        "cores": layer.cores,
        "table": layer.table,
        "folded": layer.folded,
        "biases": [name for name, there in biases.items() if there],
        "token_gate": layer.token_gate,
        "rank_one_keys": layer.rank_one_keys,
        "empty_slot": layer.empty_slot,
    }


def describe_onnx(path: Path) -> dict[str, Any]:
    """Operators with their counts, inputs, outputs and opsets of a graph, without its weights."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf and onnx raise many kinds
        raise InputError(f"{path}: not an ONNX model ({error}); export it again") from None
    operators = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph.node)
    return {
        "operators": dict(sorted(operators.items())),
        "inputs": [_port(value) for value in model.graph.input],
        "outputs": [_port(value) for value in model.graph.output],
        "opset": {opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        "functions": [f"{function.domain}::{function.name}" for function in model.functions],
    }


def _port(value: Any) -> dict[str, Any]:
    import onnx

    tensor = value.type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if tensor.elem_type else "undefined"
    return {"name": value.name, "dtype": dtype, "shape": shape}


def _stored(source: Source, plan: ImportPlan) -> list[_Stored]:
    kinds = _gguf_kinds(source)
    layout = tensor_layout(plan.spec)
    result = []
    for name, tensor in plan.tensors.items():
        elements = 1
        for dim in tensor.shape:
            elements *= dim
        dtype, nbytes = kinds.get(tensor.name) or (tensor.dtype, elements * itemsize(tensor.dtype))
        if layout[name].role == "table" and layout[name].dtype:
            dtype = plan.spec.tables[name.split(".")[1]].storage
        elif layout[name].role == "dense" and layout[name].dtype:
            dtype = plan.spec.decoder.dense
        result.append(_Stored(layout[name].role, dtype, elements, nbytes))
    return result


def _gguf_kinds(source: Source) -> dict[str, tuple[str, int]]:
    """Quantisation and bytes of every tensor of a GGUF file; the plan tells what they are decoded to alone."""
    if source.gguf is None:
        return {}
    from .converters.importers.gguf_file import GGUFFile

    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    tensors = GGUFFile(source.gguf).tensors.values()
    return {t.name: (names.get(t.kind, t.kind.lower()), int(t.data.nbytes)) for t in tensors}


def _most_common(tensors: Iterable[_Stored]) -> str | None:
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += tensor.elements
    return counts.most_common(1)[0][0] if counts else None


def _warnings(source: Source, plan: ImportPlan, tensors: list[_Stored]) -> list[str]:
    warnings = []
    dtypes = sorted({t.dtype for t in tensors if t.role == "dense"})
    if source.gguf is not None and dtypes != ["float32"]:
        warnings.append(f"stored as {', '.join(dtypes)}; convert decodes to float32 unless --dtype says otherwise")
    elif len(dtypes) > 1:
        warnings.append(f"the dense weights mix {', '.join(dtypes)}")
    names = {file.name for file in plan.companions}
    if source.gguf is None and "tokenizer.json" not in names:
        warnings.append("no tokenizer.json: heal and generate need the source model's beside the weights")
    return warnings


def _lineage(provenance: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The stages behind the model, the earliest first and its own last."""
    if provenance is None:
        return []
    source = provenance.get("source")
    sources = source if isinstance(source, list) else [source]
    names = [one.get("name") for one in sources if isinstance(one, dict)]
    own = provenance | {"source": [name for name in names if isinstance(name, str)]}
    return [{key: entry.get(key) for key in _STAGE_KEYS} for entry in (*provenance["lineage"], own)]


_STAGE_KEYS = ("stage", "source", "options", "receipt", "tool")
