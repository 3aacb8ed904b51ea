"""Pages that rows lie in, counted one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.order_model import pages


@given(st.sets(st.integers(0, 60), min_size=1), st.integers(1, 40), st.sampled_from([8, 16, 64]))
def test_pages(rows: set[int], size: int, page: int) -> None:
    expected = {byte // page for row in rows for byte in range(row * size, (row + 1) * size)}
    assert pages(np.array(sorted(rows)), size, page) == len(expected)
