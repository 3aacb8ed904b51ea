"""What importers call the files that travel with the weights; the list is `checkpoint.companions`'."""

from __future__ import annotations

from ultramem_deploy.checkpoint.companions import GENERATION_CONFIG
from ultramem_deploy.checkpoint.companions import companion_files as find_companions

__all__ = ["GENERATION_CONFIG", "find_companions"]
