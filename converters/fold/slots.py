"""Where the virtual slots of a memory layer lie in its table: sigma = shuffle[j], block, row (spec §3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.spec import MemoryLayerSpec, ModelSpec, TableSpec


@dataclass(frozen=True)
class Slots:
    """The virtual slots of memory layer `index` of an unfolded checkpoint."""

    index: int
    layer: MemoryLayerSpec
    table: TableSpec
    source: Checkpoint

    @classmethod
    def of(cls, spec: ModelSpec, index: int, source: Checkpoint) -> Slots:
        layer = spec.memory[index]
        return cls(index, layer, spec.tables[layer.table], source)

    def sigma(self, start: int, stop: int) -> np.ndarray:
        """int64 [stop - start]: the physical position of each virtual slot, block*slots + row."""
        if not self.layer.shuffle:
            return np.arange(start, stop, dtype=np.int64)
        return self.source.read_rows(f"memory.{self.index}.shuffle", start, stop).astype(np.int64)

    def block_and_row(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 [stop - start] each: the block (0 where blocks are summed) and the row of the table."""
        sigma, layer = self.sigma(start, stop), self.layer
        block = sigma // layer.slots if layer.output_blocks > 1 else np.zeros_like(sigma)
        return block, (sigma % layer.slots + layer.offset) % self.table.rows

    def rows(self, part: str, start: int, stop: int) -> np.ndarray:
        """Rows of the table's `part` ("values" or "pre_values") in retrieval order; zeros for the empty slot."""
        rows = self.source.gather(f"tables.{self.layer.table}.{part}", self.block_and_row(start, stop)[1])
        rows[self.empty(start, stop)] = 0
        return rows

    def empty(self, start: int, stop: int) -> np.ndarray:
        """Positions in [start, stop) of the slot that counts as zero; nothing where the layer has none."""
        if self.layer.empty_slot is None:
            return np.empty(0, np.int64)
        return np.flatnonzero(self.sigma(start, stop) == self.layer.empty_slot)
