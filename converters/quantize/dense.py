"""Dense weights by ONNX Runtime's own MatMulNBits quantizer: blocks of 32 numbers of a row, symmetric, a scale each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ultramem_deploy.checkpoint import Checkpoint, TensorTask
from ultramem_deploy.checkpoint.writer import chunk_elements
from ultramem_deploy.errors import InputError
from ultramem_deploy.model.loading import dense_numbers
from ultramem_deploy.storage import DENSE_BITS, DENSE_BLOCK, SCALE_DTYPE, dense_shapes

_NEEDED = "quantize: --dense: ONNX Runtime's quantizer is missing: pip install 'onnxruntime>=1.22' onnx-ir"
MEASURED_ROWS = 1024


@dataclass(frozen=True)
class DenseWeight:
    """A linear layer's weight `stored` [out, in] of `source`, which becomes codes and scales called after `name`."""

    name: str
    stored: str
    source: Checkpoint
    storage: str

    def tasks(self) -> list[TensorTask]:
        """Codes uint8 [out, blocks, bytes] and scales float32 [out, blocks]."""
        info = self.source.info(self.stored)
        codes, scales = dense_shapes(info.shape[0], info.shape[1], self.storage)
        # float32 rows, their transpose and both results.
        held = [rows * info.shape[1] * 10 for rows in (_chunk_rows(codes, "uint8"), _chunk_rows(scales, SCALE_DTYPE))]
        return [
            TensorTask(self.name, "uint8", codes, lambda a, b: self._quantised(a, b)[0], held[0]),
            TensorTask(f"{self.name}_scales", SCALE_DTYPE, scales, lambda a, b: self._quantised(a, b)[1], held[1]),
        ]

    def _quantised(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.source.read_rows(self.stored, start, stop).astype(np.float32)
        if not np.isfinite(rows).all():
            raise InputError(
                f"quantize: tensor {self.stored} is not finite, which codes cannot store; inspect the source"
            )
        codes, scales, _ = self._quantizer.qbits_block_quant(np.ascontiguousarray(rows.T))
        return codes, scales

    @cached_property
    def _quantizer(self) -> Any:
        return quantizer(self.storage)


def _chunk_rows(shape: tuple[int, ...], dtype: str) -> int:
    return chunk_elements(shape, dtype) // max(1, math.prod(shape[1:]))


def quantizer(storage: str) -> Any:
    """ONNX Runtime's weight-only quantizer. Raises InputError where it is not installed."""
    try:
        from onnxruntime.quantization import matmul_nbits_quantizer as nbits
    except ImportError:
        raise InputError(_NEEDED) from None
    bits = DENSE_BITS[storage]
    return nbits.DefaultWeightOnlyQuantizer(
        nbits.DefaultWeightOnlyQuantConfig(block_size=DENSE_BLOCK, is_symmetric=True, bits=bits)
    )


def dense_error(weights: Sequence[DenseWeight], written: Checkpoint) -> float:
    """Relative RMS error of all weights together, as they were written."""
    sums = np.zeros(2)
    for weight in weights:
        scales = written.torch(f"{weight.name}_scales")
        codes = written.torch(weight.name)
        for start in range(0, len(scales), MEASURED_ROWS):
            part = slice(start, start + MEASURED_ROWS)
            x = weight.source.read_rows(weight.stored, start, min(start + MEASURED_ROWS, len(scales)))
            y = dense_numbers(codes[part], scales[part], weight.storage)
            true = torch.from_numpy(x.astype(np.float32))
            sums += [float((y - true).square().sum()), float(true.square().sum())]
    return math.sqrt(sums[0] / sums[1]) if sums[1] else 0.0
