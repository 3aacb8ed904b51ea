"""The families that can be imported, and the choice among them."""

from __future__ import annotations

from pathlib import Path

from ultramem_deploy.errors import InputError

from .base import Importer, ImportPlan, Source, described, open_source
from .deepseek_v3 import DEEPSEEK_V3
from .gemma3 import GEMMA3
from .gguf import GGUFImporter
from .llama import LLAMA
from .matching import TensorsDiffer
from .meta_memory import MetaMemoryImporter, PkmImporter
from .mistral import MISTRAL
from .mixtral import MIXTRAL
from .nearest import nearest_family, nearest_tensors
from .olmo import OLMO
from .olmo2 import OLMO2
from .olmo_ultramem import OlmoUltraMemImporter
from .olmoe import OLMOE
from .qwen2 import QWEN2
from .qwen2_moe import QWEN2_MOE
from .qwen3 import QWEN3
from .qwen3_moe import QWEN3_MOE
from .ultramem import UltraMemImporter

IMPORTERS: tuple[Importer, ...] = (
    UltraMemImporter(),
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    OLMO,
    OLMO2,
    GEMMA3,
    OLMOE,
    MIXTRAL,
    QWEN2_MOE,
    QWEN3_MOE,
    DEEPSEEK_V3,
    OlmoUltraMemImporter(),
    MetaMemoryImporter(),
    PkmImporter(),
    GGUFImporter(),
)
"""Every importer; detectors are exclusive, so their order does not matter."""


def plan_import(path: Path, family: str | None = None) -> ImportPlan:
    """Recognise the model at `path` and plan its import, from metadata and headers alone.

    `family` overrides the detection. Raises ConfigError with every problem of the configuration, InputError for an
    unknown family or architecture, or for tensors that do not fit.
    """
    return plan_source(open_source(path), family)


def plan_source(source: Source, family: str | None = None) -> ImportPlan:
    """As `plan_import`, of a source that is open; where its tensors do not fit, the error says which family's would."""
    importer = choose_importer(source, family)
    try:
        return importer.plan(source)
    except TensorsDiffer as error:
        raise InputError(f"{error}; {nearest_tensors(source, importer, error, IMPORTERS)}") from None


def choose_importer(source: Source, family: str | None = None) -> Importer:
    """The importer of `source`. Raises InputError that says what was found, what is supported and what nearly fits."""
    if family is not None:
        return _named(source, family)
    for importer in IMPORTERS:
        if importer.detect(source):
            return importer
    misses = [miss for importer in IMPORTERS if (miss := importer.near_miss(source))]
    if not misses and source.gguf is None:
        misses = [miss for miss in [nearest_family(source, IMPORTERS)] if miss]
    hint = f"; {'; '.join(misses)}" if misses else ""
    supported = ", ".join(f"{one.family} ({', '.join(one.recognises)})" for one in IMPORTERS)
    raise InputError(f"{source.where}: unknown model: {described(source)}{hint}; supported: {supported}")


def unknown_family(family: str) -> str:
    """What was expected, where `family` is no importer's; else nothing."""
    known = [importer.family for importer in IMPORTERS]
    return "" if family in known else f"expected one of {', '.join(known)}, found {family!r}"


def _named(source: Source, family: str) -> Importer:
    if problem := unknown_family(family):
        raise InputError(f"--from: {problem}")
    importer = next(one for one in IMPORTERS if one.family == family)
    if (source.gguf is not None) != importer.reads_gguf or source.config_name != importer.config_name:
        form = "a .gguf file" if importer.reads_gguf else f"a model directory with {importer.config_name}"
        raise InputError(f"{source.where}: family {family} reads {form}, which this is not")
    return importer
