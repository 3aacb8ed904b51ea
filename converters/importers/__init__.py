"""From anybody's checkpoint to the canonical one: one file a family, chosen by the source's own metadata."""

from __future__ import annotations

from .base import Importer, ImportPlan, Source, SourceTensor, open_source
from .convert import import_checkpoint
from .registry import IMPORTERS, choose_importer, plan_import, plan_source

__all__ = [
    "IMPORTERS",
    "ImportPlan",
    "Importer",
    "Source",
    "SourceTensor",
    "choose_importer",
    "import_checkpoint",
    "open_source",
    "plan_import",
    "plan_source",
]
