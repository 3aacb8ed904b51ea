"""Every way to run an operator agrees with the formula in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from . import checks
from .backends import Backend
from .cases import ENCODINGS, TABLE_TYPES, Case, gates, large_lookup, lookups, retrievals

EXAMPLES = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@EXAMPLES
@given(case=lookups())
def test_sparse_lookup(case: Case, runners: dict[str, Backend]) -> None:
    checks.check_sparse_lookup(case, runners)


@pytest.mark.parametrize(
    ("width", "slots", "blocks", "cores"),
    [
        pytest.param(2048, 20, 1, 1, id="rows that share sets of the cache"),
        pytest.param(4096, 131, 3, 2, id="such rows, several groups and blocks"),
        pytest.param(712, 300, 1, 1, id="several tiles and groups"),
        pytest.param(1408, 131, 4, 2, id="several tiles and groups, blocks and cores"),
        pytest.param(72, 300, 700, 1, id="more blocks than are told apart"),
    ],
)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("activations", [torch.float32, torch.float16], ids=str)
def test_large_sparse_lookups(
    width: int,
    slots: int,
    blocks: int,
    cores: int,
    encoding: str,
    activations: torch.dtype,
    runners: dict[str, Backend],
) -> None:
    for dtype in TABLE_TYPES if encoding == "float" else (torch.float32,):
        case = large_lookup(width, slots, blocks, cores, encoding, dtype, activations)
        checks.check_sparse_lookup(case, runners)


@EXAMPLES
@given(case=gates())
def test_sparse_gate(case: Case, runners: dict[str, Backend]) -> None:
    checks.check_sparse_gate(case, runners)


@EXAMPLES
@given(case=retrievals())
def test_tucker_topk(case: Case, runners: dict[str, Backend]) -> None:
    checks.check_tucker_topk(case, runners)
