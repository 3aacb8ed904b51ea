"""From a canonical checkpoint to a module, weights memory-mapped."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import nn

from ..checkpoint import Checkpoint
from ..errors import InputError
from ..layout import decoder_shapes, tensor_layout
from ..ops.placement import placed
from ..spec import ModelSpec
from ..storage import DENSE_BITS
from ..tables import overlapped, wanted
from .decoder import UltraMemModel
from .memory import MemoryLayer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    path: str | Path,
    dtype: str | None = None,
    device: str = "cpu",
    tables: str | None = None,
    overlap: bool | None = None,
) -> UltraMemModel:
    """The PyTorch model of a canonical checkpoint, in evaluation mode, without gradients.

    dtype: "float32", "bfloat16" or "float16" converts the floating-point tensors, but for quantised tables; None keeps
    them as stored, mapped from the files without a copy (where a source mixes dtypes in its decoder: the widest of
    them). tables: "auto", "resident" or "mapped", where tables on the CPU lie (docs/kernels.md); None takes
    $ULTRAMEM_TABLES, else auto. overlap: have the rows of mapped tables read while the blocks between a memory layer's
    read and its write run; None takes $ULTRAMEM_OVERLAP, else yes. Raises InputError where a tensor is missing, left
    over, of another shape, or stored as it must not be, and where resident tables do not fit.
    """
    mode = wanted(tables)
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
    directory = Path(path)
    model = load_checkpoint(ModelSpec.load(directory), Checkpoint.open(directory), dtype, device)
    place_tables(model, mode)
    model.overlap = overlapped(overlap)
    return model


def place_tables(model: UltraMemModel, mode: str) -> None:
    """Put the tables that are mapped from files where `mode` wants them (see `tables`). Raises InputError."""
    for name, table in model.tables.items():
        for part, tensor in table.state_dict(keep_vars=True).items():
            found = placed(f"tables.{name}.{part}", tensor, mode)
            if found is not tensor:
                parameter = isinstance(tensor, nn.Parameter)
                setattr(table, part, nn.Parameter(found, requires_grad=False) if parameter else found)


def load_checkpoint(
    spec: ModelSpec, checkpoint: Checkpoint, dtype: str | None = None, device: str = "cpu"
) -> UltraMemModel:
    """As `load`, of a checkpoint that is open already."""
    check_tensors(spec, checkpoint)
    return assemble(spec, checkpoint, dtype, device)


def assemble(spec: ModelSpec, checkpoint: Checkpoint, dtype: str | None = None, device: str = "cpu") -> UltraMemModel:
    """The model that `spec` describes over the tensors of `checkpoint`, which holds them all; as `load` otherwise."""
    with torch.device("meta"):
        model = UltraMemModel(spec)
    target = DTYPES[dtype] if dtype else None
    dense = target or _dense_dtype(spec, checkpoint)
    wanted = {"dense": dense, "memory": target, "table": target, "buffer": target, "scales": None}
    state = {
        name: _converted(checkpoint.torch(name), None if tensor.dtype else wanted[tensor.role], device)
        for name, tensor in tensor_layout(spec).items()
    }
    decode_dense(spec, state, dense)
    model.load_state_dict(state, strict=True, assign=True)
    return model.requires_grad_(False).eval()


def _dense_dtype(spec: ModelSpec, checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of the decoder's weights; the widest common one where a source mixes them."""
    names = [name for name, tensor in tensor_layout(spec).items() if tensor.role == "dense" and not tensor.dtype]
    dtypes: set[torch.dtype] = {getattr(torch, checkpoint.info(name).dtype) for name in names}
    widest: torch.dtype = functools.reduce(torch.promote_types, dtypes)
    return widest


def decode_dense(spec: ModelSpec, state: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Turn the decoder's quantised weights in `state` into floats [out, in], and drop their scales."""
    for name, shape in decoder_shapes(spec.decoder).items():
        scales = state.pop(f"{name}_scales", None) if spec.decoder.dense != "float" else None
        if scales is not None:
            state[name] = dense_numbers(state[name], scales, spec.decoder.dense).reshape(shape).to(dtype)


def dense_numbers(codes: torch.Tensor, scales: torch.Tensor, storage: str) -> torch.Tensor:
    """What MatMulNBits reads: codes uint8 [out, blocks, bytes] less the middle, times scales [out, blocks].

    Returns float32 [out, blocks * 32].
    """
    if storage == "int4":
        codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)
    middle = 1 << (DENSE_BITS[storage] - 1)
    return ((codes.float() - middle) * scales[..., None]).flatten(1)


def load_memory_layer(
    spec: ModelSpec, checkpoint: Checkpoint, index: int, dtype: torch.dtype | None = None
) -> MemoryLayer:
    """One memory layer, apart from the decoder and without its table; tensors stay mapped unless `dtype` differs."""
    with torch.device("meta"):
        layer = MemoryLayer(spec.memory[index], spec)
    prefix = f"memory.{index}."
    names = [full for full in tensor_layout(spec) if full.startswith(prefix)]
    state = {full.removeprefix(prefix): _converted(checkpoint.torch(full), dtype, "cpu") for full in names}
    layer.load_state_dict(state, strict=True, assign=True)
    return layer.requires_grad_(False).eval()


def _converted(tensor: torch.Tensor, dtype: torch.dtype | None, device: str) -> torch.Tensor:
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)


def check_tensors(spec: ModelSpec, checkpoint: Checkpoint) -> None:
    """Raise InputError unless the checkpoint holds exactly the tensors that the description asks for."""
    layout = tensor_layout(spec)
    where = checkpoint.path.name
    for name, expected in layout.items():
        found = checkpoint.info(name)
        if found.shape != expected.shape:
            raise InputError(
                f"{where}: tensor {name}: config.json asks for shape {list(expected.shape)}, found {list(found.shape)}"
            )
        if expected.dtype not in (None, found.dtype):
            raise InputError(f"{where}: tensor {name}: config.json asks for {expected.dtype}, found {found.dtype}")
    extra = sorted(set(checkpoint.tensors) - set(layout))
    if extra:
        raise InputError(f"{where}: tensor {extra[0]} ({len(extra)} in all) is not part of the model in config.json")
