"""Every way to run an operator agrees with the formula in float64."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from . import checks
from .backends import Backend
from .cases import Case, gates, lookups, retrievals

EXAMPLES = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@EXAMPLES
@given(case=lookups())
def test_sparse_lookup(case: Case, runners: dict[str, Backend]) -> None:
    checks.check_sparse_lookup(case, runners)


@EXAMPLES
@given(case=gates())
def test_sparse_gate(case: Case, runners: dict[str, Backend]) -> None:
    checks.check_sparse_gate(case, runners)


@EXAMPLES
@given(case=retrievals())
def test_tucker_topk(case: Case, runners: dict[str, Backend]) -> None:
    checks.check_tucker_topk(case, runners)
