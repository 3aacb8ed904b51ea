"""The canonical checkpoint itself, so that every command takes either form."""

from __future__ import annotations

from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.spec import MODEL_TYPE, ModelSpec

from .base import Importer, ImportPlan, Source, SourceTensor
from .companions import find_companions
from .matching import NameMap, match_tensors


class UltraMemImporter(Importer):
    """Reads the description as it is; every tensor keeps its name and dtype."""

    family = MODEL_TYPE
    recognises = ("UltraMemForCausalLM",)

    def detect(self, source: Source) -> bool:
        return source.model_type == MODEL_TYPE

    def plan(self, source: Source) -> ImportPlan:
        spec = ModelSpec.from_config(source.config, source.where)
        wanted = {name: tensor.shape for name, tensor in tensor_layout(spec).items()}
        held = {name: info.shape for name, info in source.checkpoint.tensors.items()}
        pairs = match_tensors(str(source.path), wanted, held, NameMap())
        tensors = {name: SourceTensor.of(source.checkpoint, name) for name in pairs}
        return ImportPlan(self.family, spec, tensors, [], find_companions(source.directory))
