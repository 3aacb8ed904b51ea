"""The predicted time of a step, and the batch at which expanding stops to pay, against sums by hand."""

from __future__ import annotations

import pytest

from tests import builders as b
from ultramem_deploy.planning.folds import ItemBytes, folded_items, folded_spec
from ultramem_deploy.planning.steps import StepRates, crossover, step_seconds

# V1: K = 8 rows of D = 16 numbers, W_o of 4 * 16 * 32; expanded M * d = 64 numbers a row.
ITEMS = ItemBytes(values=2, pre_values=0, output=4, keys=0, shuffle=0)
UNFOLDED = (b.V1, ITEMS)
EXPANDED = (folded_spec(b.V1, ["expand"]), folded_items("expand", ITEMS))


def test_a_step_reads_rows_reads_weights_and_multiplies() -> None:
    rates = StepRates(100.0, 1.0, 1000.0, 4096.0)
    spec, items = UNFOLDED
    # One token: 8 rows of 32 bytes, 8192 bytes of W_o and its 4096 operations.
    assert step_seconds(spec.memory[0], spec, items, 1, rates) == pytest.approx(1 + 2.56 + 8.192 + 1.0)
    # Ten: W_o is still read once.
    assert step_seconds(spec.memory[0], spec, items, 10, rates) == pytest.approx(1 + 25.6 + 8.192 + 10.0)
    spec, items = EXPANDED
    assert step_seconds(spec.memory[0], spec, items, 10, rates) == pytest.approx(1 + 102.4)


def test_the_crossover_is_where_both_take_the_same_time() -> None:
    # W_o's 8192 bytes against 8 * (128 - 32) bytes more of rows a token.
    assert crossover(UNFOLDED, EXPANDED, 0, StepRates(1.0, 5.0, 1.0, 1e12)) == pytest.approx(8192 / 768, rel=0.01)
    assert crossover(UNFOLDED, EXPANDED, 0, StepRates(1.0, 0.0, 1e9, 1e12)) == 1.0
    assert crossover(UNFOLDED, EXPANDED, 0, StepRates(1e9, 0.0, 1.0, 1.0)) is None
