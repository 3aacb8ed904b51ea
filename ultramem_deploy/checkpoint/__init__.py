"""Checkpoints on disk: lazy reads, streamed atomic writes, hashes, provenance. Importing it does not import torch."""

from __future__ import annotations

from ultramem_deploy.checkpoint.header import TensorInfo, numpy_dtype, read_header
from ultramem_deploy.checkpoint.pending import PendingSource, identified
from ultramem_deploy.checkpoint.provenance import SourceRecord, read_provenance, source_record
from ultramem_deploy.checkpoint.reader import Checkpoint
from ultramem_deploy.checkpoint.stage import Stage
from ultramem_deploy.checkpoint.writer import TensorTask

__all__ = [
    "Checkpoint",
    "PendingSource",
    "SourceRecord",
    "Stage",
    "TensorInfo",
    "TensorTask",
    "identified",
    "numpy_dtype",
    "read_header",
    "read_provenance",
    "source_record",
]
