"""Predicted time of a step's lookup and projection, and the batch at which an expanded layer stops to be faster."""

from __future__ import annotations

from dataclasses import dataclass

from ..spec import MemoryLayerSpec, ModelSpec
from .folds import ItemBytes, projection_numbers, row_bytes

LARGEST_BATCH = 4096
Side = tuple[ModelSpec, ItemBytes]


@dataclass(frozen=True)
class StepRates:
    """Of every core together: random rows, a lookup's fixed time, and a linear layer's weights and multiplications."""

    lookup_bytes_per_second: float
    lookup_fixed_seconds: float
    linear_bytes_per_second: float
    linear_flops_per_second: float


def step_seconds(layer: MemoryLayerSpec, spec: ModelSpec, items: ItemBytes, batch: float, rates: StepRates) -> float:
    """Seconds of looking up `batch` tokens' K rows and, where it is not folded away, of multiplying by W_o.

    A product reads its weights once, then multiplies: at the batches where folds cross, the two hardly overlap
    (benchmarks/NOTES.md).
    """
    read = batch * layer.taken * row_bytes(spec.tables[layer.table], items)
    numbers = projection_numbers(layer, spec)
    weights = numbers * items.output / rates.linear_bytes_per_second
    multiplied = 2 * batch * numbers / rates.linear_flops_per_second
    return rates.lookup_fixed_seconds + read / rates.lookup_bytes_per_second + weights + multiplied


def crossover(unfolded: Side, expanded: Side, index: int, rates: StepRates) -> float | None:
    """The batch below which memory layer `index` is faster expanded, by bisection; None where it always is."""

    def gain(batch: float) -> float:
        before, after = (step_seconds(s.memory[index], s, items, batch, rates) for s, items in (unfolded, expanded))
        return before - after

    low, high = 1.0, float(LARGEST_BATCH)
    if gain(low) <= 0:
        return low
    if gain(high) > 0:
        return None
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if gain(middle) > 0 else (low, middle)
    return round(low, 1)
