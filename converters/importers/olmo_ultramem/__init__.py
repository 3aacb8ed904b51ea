"""Checkpoints of the official UltraMem training code (spec §6): UltraMem v1 and v2, and its Memory+."""

from __future__ import annotations

from collections.abc import Mapping

from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.errors import InputError
from ultramem_deploy.official.description import decoder_spec, memory_spec
from ultramem_deploy.official.layout import official_layout
from ultramem_deploy.official.model import KINDS, Official
from ultramem_deploy.spec import ModelSpec, model_problems

from ..base import YAML_NAME, Importer, ImportPlan, Source, SourceTensor
from ..companions import find_companions
from ..config_reader import ConfigReader
from ..huggingface import WEIGHT_DTYPES
from ..matching import NameMap, match_tensors
from ..tokens import read_tokens
from ..training_weights import open_weights
from .config import FIXED, IGNORED, KEYS, model_section, read_official
from .decoder import decoder_tensors
from .memory import memory_tensors
from .quirks import check_config
from .ranks import group_tensors

FAMILY = "olmo-ultramem"
_SHUFFLE = "shuffle_index"


class OlmoUltraMemImporter(Importer):
    """`config.yaml` with any of the forms that `training_weights` reads."""

    family = FAMILY
    recognises = tuple(f"config.yaml with mem_type {kind}" for kind in KINDS)
    config_name = YAML_NAME

    def detect(self, source: Source) -> bool:
        section = model_section(source.config)
        return source.config_name == YAML_NAME and any(str(key).startswith("mem_") for key in section)

    def near_miss(self, source: Source) -> str | None:
        if source.config_name != YAML_NAME:
            return None
        section = model_section(source.config)
        known = sorted(str(key) for key in section if key in KEYS or key in FIXED)
        if not known:
            return f"{YAML_NAME} has no model section: none of d_model, n_layers, n_heads, mem_type is in it"
        return (
            f"{FAMILY} comes closest ({len(known)} keys fit, as {known[0]}), but no key begins with mem_: a plain OLMo"
            " run; convert it to Hugging Face's form, which family olmo or olmo2 reads"
        )

    def plan(self, source: Source) -> ImportPlan:
        reader = ConfigReader(model_section(source.config), source.where)
        model = read_official(reader)
        spec = _spec(reader, model)
        weights = open_weights(source.path)
        reader.warnings.extend(weights.warnings)
        tensors = group_tensors(source.path, weights, model, reader.warnings)
        _match(source, model, tensors)
        warn = reader.warnings.append
        found = decoder_tensors(model, tensors, warn) | memory_tensors(model, tensors, warn)
        return ImportPlan(self.family, spec, found, reader.warnings, find_companions(source.directory))


def _spec(reader: ConfigReader, model: Official) -> ModelSpec:
    check_config(reader, model)
    tokens = read_tokens(reader, {}, model.embeddings)
    if reader.failed or reader.problems:
        reader.finish(IGNORED)
    layers, tables = memory_spec(model)
    spec = ModelSpec(decoder_spec(model), layers, tables, tokens, FAMILY)
    reader.finish(IGNORED, model_problems(spec))
    return spec


def _match(source: Source, model: Official, tensors: Mapping[str, SourceTensor]) -> None:
    """InputError unless the checkpoint holds what its configuration describes, in dtypes that we read."""
    match_tensors(
        str(source.path), official_layout(model), {name: tensor.shape for name, tensor in tensors.items()}, NameMap()
    )
    for name, tensor in tensors.items():
        allowed = ("int64", "int32") if name.endswith(_SHUFFLE) else WEIGHT_DTYPES
        if tensor.dtype not in allowed:
            raise InputError(
                f"{source.path}: tensor {shown(name)} holds {tensor.dtype}, expected one of {', '.join(allowed)}"
            )
