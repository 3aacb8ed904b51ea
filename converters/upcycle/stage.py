"""The stage `upcycle`: a dense canonical checkpoint in, one with memory layers out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

from ultramem_deploy.checkpoint import Checkpoint, Stage, source_record
from ultramem_deploy.checkpoint.budget import chunks_in_flight
from ultramem_deploy.checkpoint.carry import carry
from ultramem_deploy.checkpoint.companions import companion_files
from ultramem_deploy.errors import InputError
from ultramem_deploy.planning import parameter_counts
from ultramem_deploy.planning.machine import available_memory
from ultramem_deploy.spec import ModelSpec
from ultramem_deploy.units import size

from .identity import memory_tasks, permutation_bytes, table_tasks, upcycled_spec
from .identity_options import IdentityOptions
from .writing import Writing

METHODS = ("identity", "neurons", "experts")


def upcycle_checkpoint(
    src: Path,
    out: Path,
    *,
    method: str = "identity",
    options: IdentityOptions | None = None,
    **writing: Unpack[Writing],
) -> dict[str, Any]:
    """Write `out`: the decoder's shards linked, the memory layers new. Returns the receipt.

    Raises InputError for an unknown method, a source that has memory layers already, or sizes that cannot work.
    """
    if method != "identity":
        raise InputError(f"--method: expected one of {', '.join(METHODS)}, found {method!r}")
    options = options or IdentityOptions()
    spec = upcycled_spec(ModelSpec.load(src), options)
    source = Checkpoint.open(src)
    dtype = source.info("model.embed_tokens.weight").dtype
    stage_options = {"method": method, **asdict(options)}
    groups = {
        "memory": memory_tasks(spec, dtype, options.seed),
        "tables": table_tasks(spec, dtype, options.seed),
    }
    chunks_in_flight([task for tasks in groups.values() for task in tasks], 1, writing.get("memory_budget"))
    with Stage(out, "upcycle", source_record(src), stage_options, **writing) as stage:
        if not stage.up_to_date:
            advice = "choose a smaller --knum (a table has knum*knum rows) or --value-width"
            stage.require_room(groups, advice, source.files)
            _require_memory(permutation_bytes(spec))
            carry(stage, source, source.tensors)
            for group, tasks in groups.items():
                stage.write_tensors(group, tasks)
            stage.write_json("config.json", spec.to_config())
            for file in companion_files(src):
                stage.link_file(file)
            # Zero times a finite number is zero: the memory adds nothing until its output projection is trained.
            stage.receipt = _receipt(spec, method)
    return _receipt(spec, method) | {"up_to_date": stage.up_to_date} | stage.notes


def _require_memory(needed: int) -> None:
    free = available_memory()
    if needed > free:
        raise InputError(
            f"upcycle: a layer's shuffle takes {size(needed)} while it is drawn, {size(free)} of memory are available:"
            f" {size(needed - free)} short; choose a smaller --knum or --blocks (it has blocks*knum*knum entries)"
        )


def _receipt(spec: ModelSpec, method: str) -> dict[str, Any]:
    return {
        "method": method,
        "memory_layers": [f"{s.read_block}:{s.write_block}" for s in spec.memory],
        "preserving": "exact at step 0: the output projections are zero",
        **parameter_counts(spec),
    }
