"""Checkpoints of Meta's memory code (spec §7): Memory+, plain product keys and PEER in place of FFNs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ultramem_deploy.checkpoint.header import numpy_dtype, shown
from ultramem_deploy.errors import InputError
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.spec import ModelSpec

from .base import PARAMS_NAME, Importer, ImportPlan, Source, SourceTensor
from .companions import find_companions
from .huggingface import WEIGHT_DTYPES
from .matching import NameMap, match_tensors
from .meta_memory_config import FAMILY, MetaMemory, model_section, read_params
from .training_weights import open_weights
from .views import Array, whole

_BLOCK = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
_NAMES = NameMap(
    [
        ("model.embed_tokens.weight", "tok_embeddings.weight"),
        ("model.norm.weight", "norm.weight"),
        ("lm_head.weight", "output.weight"),
        *((f"model.layers.{{i}}.{ours}.weight", f"layers.{{i}}.{theirs}.weight") for ours, theirs in _BLOCK.items()),
    ]
)
_LINEAR = {"query": "query_proj.query_mlps.0", "output": "value_proj", "output_gate": "swilu_projection"}
_IGNORABLE = (r"rope_embeddings\..*",)
_COMPARED = 256
Tensors = Mapping[str, SourceTensor]


class MetaMemoryImporter(Importer):
    """`params.json` with `productkey_args`, beside consolidated.pth or a DCP directory."""

    family = FAMILY
    recognises = ("params.json with productkey_args",)
    config_name = PARAMS_NAME

    def detect(self, source: Source) -> bool:
        return _has_memory(source) and not _plain(source)

    def near_miss(self, source: Source) -> str | None:
        if source.config_name != PARAMS_NAME:
            return None
        return (
            f"{FAMILY} reads {PARAMS_NAME}, but this one has no productkey_args: a dense model, which it does not read"
        )

    def plan(self, source: Source) -> ImportPlan:
        spec, memory = read_params(source.config, source.where)
        weights = open_weights(source.path)
        tensors = weights.tensors
        shapes = _expected(spec, memory, tensors)
        match_tensors(str(source.path), shapes, {n: t.shape for n, t in tensors.items()}, NameMap(), _IGNORABLE)
        _check(source.path, memory, tensors)
        spec = replace(_with_biases(spec, memory, tensors), source_family=self.family)
        warnings = list(weights.warnings)
        if memory.blocks:
            warnings.append(f"the memory replaces the FFN of blocks {', '.join(map(str, memory.blocks))}")
        found = _decoder(spec, memory, tensors) | _memory(spec, memory, tensors)
        return ImportPlan(self.family, spec, found, warnings, find_companions(source.directory))


class PkmImporter(MetaMemoryImporter):
    """As `MetaMemoryImporter`, plain product keys alone: additive scores, a softmax over the kept ones (PKM)."""

    family = "pkm"
    recognises = ("params.json with productkey_args, swilu_projection false",)

    def detect(self, source: Source) -> bool:
        return _has_memory(source) and _plain(source)

    def near_miss(self, source: Source) -> str | None:
        return None

    def plan(self, source: Source) -> ImportPlan:
        if _has_memory(source) and not _plain(source):
            raise InputError(
                f"{source.where}: productkey_args: {self.family} expects swilu_projection false and peer_variant false;"
                f" convert with --from {FAMILY}"
            )
        return super().plan(source)


def _has_memory(source: Source) -> bool:
    return source.config_name == PARAMS_NAME and "productkey_args" in model_section(source.config)


def _plain(source: Source) -> bool:
    given = model_section(source.config).get("productkey_args")
    switches = given if isinstance(given, dict) else {}
    return switches.get("swilu_projection", True) is False and switches.get("peer_variant", False) is False


def _expected(spec: ModelSpec, memory: MetaMemory, tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the source; a shared table may lie under every memory layer or under the first alone."""
    shapes = {_NAMES.source(n): t.shape for n, t in tensor_layout(spec).items() if t.role == "dense"}
    d, rows = spec.decoder.hidden_size, memory.keys**2
    width = memory.value_dim or d
    for number, block in enumerate(memory.blocks):
        prefix = f"layers.{block}.feed_forward."
        shapes[f"{prefix}keys"] = (2 * memory.heads * memory.keys, memory.key_dim // 2)
        shapes |= _linear(f"{prefix}query_proj.query_mlps.0", memory.heads * memory.key_dim, d)
        for name in ("values_u", "values_v") if memory.peer else ("values",):
            if number == 0 or not memory.shared or f"{prefix}{name}.weight" in tensors:
                shapes[f"{prefix}{name}.weight"] = (rows, width)
        # The PEER variant keeps projections that it does not use.
        if memory.swilu or memory.value_dim is not None:
            shapes |= _linear(f"{prefix}value_proj", d, width)
        if memory.swilu:
            shapes |= _linear(f"{prefix}swilu_projection", width, d)
        if memory.gated:
            shapes |= _linear(f"{prefix}gating", 1, d)
    return shapes


def _linear(name: str, out: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, inner), f"{name}.bias": (out,)}


def _check(path: Path, memory: MetaMemory, tensors: Tensors) -> None:
    """InputError for copies of a shared table that differ, and for dtypes that are no floats."""
    for name, tensor in tensors.items():
        if tensor.dtype not in WEIGHT_DTYPES:
            raise InputError(f"{path}: tensor {shown(name)} holds {tensor.dtype}, expected {', '.join(WEIGHT_DTYPES)}")
    if memory.shared and memory.blocks:
        for name in ("values_u", "values_v") if memory.peer else ("values",):
            _check_copies(path, memory, tensors, f"{name}.weight")


def _with_biases(spec: ModelSpec, memory: MetaMemory, tensors: Tensors) -> ModelSpec:
    """The description with the biases that are not all zero: this code always has them, and starts them at random."""

    def has(block: int, part: str) -> bool:
        return bool(whole(tensors[f"layers.{block}.feed_forward.{_LINEAR[part]}.bias"]).any())

    layers = tuple(
        replace(
            layer,
            query_bias=has(block, "query"),
            output_bias=memory.projected and has(block, "output"),
            output_gate_bias=memory.gate and has(block, "output_gate"),
        )
        for block, layer in zip(memory.blocks, spec.memory, strict=True)
    )
    return replace(spec, memory=layers)


def _check_copies(path: Path, memory: MetaMemory, tensors: Tensors, name: str) -> None:
    first = tensors[f"layers.{memory.blocks[0]}.feed_forward.{name}"]
    for block in memory.blocks[1:]:
        other = tensors.get(f"layers.{block}.feed_forward.{name}")
        rows = min(_COMPARED, first.shape[0])
        if other is not None and other.rows(0, rows).tobytes() != first.rows(0, rows).tobytes():
            raise InputError(
                f"{path}: tensor {shown(other.name)} differs from {shown(first.name)}, though mem_share_values is true"
            )


def _decoder(spec: ModelSpec, memory: MetaMemory, tensors: Tensors) -> dict[str, SourceTensor]:
    """The dense tensors; rotary positions of this code interleave each head's halves, ours do not."""
    dense = {name: tensors[_NAMES.source(name)] for name, t in tensor_layout(spec).items() if t.role == "dense"}
    turned = ("q_proj.weight", "k_proj.weight")
    return {n: _halves(t, spec.decoder.head_dim) if n.endswith(turned) else t for n, t in dense.items()}


def _halves(tensor: SourceTensor, size: int) -> SourceTensor:
    order = np.concatenate([np.arange(0, size, 2), np.arange(1, size, 2)])

    def rows(start: int, stop: int) -> Array:
        wanted = np.arange(start, stop)
        first, last = start // size * size, -(-stop // size) * size
        picked: Array = tensor.rows(first, last)[wanted // size * size + order[wanted % size] - first]
        return picked

    return SourceTensor(tensor.name, tensor.shape, tensor.dtype, rows)


def _memory(spec: ModelSpec, memory: MetaMemory, tensors: Tensors) -> dict[str, SourceTensor]:
    result: dict[str, SourceTensor] = {}
    for number, block in enumerate(memory.blocks):
        prefix = f"layers.{block}.feed_forward."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        layer = _layer(memory, own, spec.decoder.hidden_size)
        for part, theirs in _LINEAR.items():
            if getattr(spec.memory[number], f"{part}_bias"):
                layer[f"{part}.bias"] = own[f"{theirs}.bias"]
        result |= {f"memory.{number}.{name}": tensor for name, tensor in layer.items()}
        if number == 0 or not memory.shared:
            table = f"tables.{memory.table(block)}"
            result[f"{table}.values"] = own["values_v.weight" if memory.peer else "values.weight"]
            if memory.peer:
                result[f"{table}.pre_values"] = own["values_u.weight"]
    return result


def _layer(memory: MetaMemory, own: Tensors, hidden: int) -> dict[str, SourceTensor]:
    dtype = own["keys"].dtype
    result = {"query.weight": own[f"{_LINEAR['query']}.weight"]}
    for side, name in enumerate(("row_keys", "col_keys")):
        result[name] = _side(memory, own["keys"], side)
    # What this code does not project is projected by the identity: multiplied by 1, zeros added.
    result["output.weight"] = own["value_proj.weight"] if memory.projected else _identity(hidden, dtype)
    if memory.peer:
        result["pre_query.weight"] = _identity(hidden, dtype)
    elif memory.swilu:
        result["output_gate.weight"] = own["swilu_projection.weight"]
    if memory.gated:
        result |= {f"token_gate.{part}": own[f"gating.{part}"] for part in ("weight", "bias")}
    return result


def _side(memory: MetaMemory, keys: SourceTensor, side: int) -> SourceTensor:
    """Keys are saved as [H*2*n, width], heads outermost."""
    count, width = memory.keys, memory.key_dim // 2

    def rows(start: int, stop: int) -> Array:
        both = keys.rows(start * 2 * count, stop * 2 * count).reshape(stop - start, 2, count, width)
        return both[:, side : side + 1]

    return SourceTensor(keys.name, (memory.heads, 1, count, width), keys.dtype, rows)


def _identity(size: int, dtype: str) -> SourceTensor:
    kind = numpy_dtype(dtype)
    return SourceTensor(
        "identity", (size, size), dtype, lambda a, b: np.eye(b - a, size, a, dtype=np.float32).astype(kind)
    )
