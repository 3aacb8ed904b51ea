"""When PyTorch's tensors go to the native kernels, and that what does not fit them goes to the reference."""

from __future__ import annotations

import pytest
import torch

from ultramem_deploy.ops import native
from ultramem_deploy.ops.sparse_gate import sparse_gate
from ultramem_deploy.ops.sparse_lookup import reference, sparse_lookup

from .cases import normal

ADDRESSES = torch.tensor([[0, 5, 11], [3, 9, 1]])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The problems that reach a kernel while a test runs."""
    seen: list[str] = []
    run = native.run

    def record(operator: str, name: str, problem: object) -> bool:
        seen.append(operator)
        return run(operator, name, problem)  # type: ignore[arg-type]

    monkeypatch.setattr(native, "run", record)
    return seen


def test_the_library_is_found() -> None:
    assert native.kernels() is not None


def test_eager_tensors_without_gradients_use_the_kernel(calls: list[str]) -> None:
    table, scores = normal(1, (6, 40), (2, 3, 2))
    strided = scores.transpose(0, 1).contiguous().transpose(0, 1)
    expected = reference(table, ADDRESSES, scores, 2)
    for one in (scores, strided):
        # float32 sums of three terms near 1.
        torch.testing.assert_close(sparse_lookup(table, ADDRESSES, one, 2), expected, rtol=1e-5, atol=1e-5)
    assert calls == ["SparseLookup"] * 2


@pytest.mark.parametrize("what", ["gradient", "bfloat16 scores", "strided table", "fake", "switched off"])
def test_the_rest_uses_the_reference(what: str, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    table, scores = normal(2, (6, 40), (2, 3, 2))
    if what == "gradient":
        table.requires_grad_()
    elif what == "bfloat16 scores":
        scores = scores.bfloat16()
    elif what == "strided table":
        table = table.T.contiguous().T
    elif what == "switched off":
        monkeypatch.setattr(native, "kernels", lambda: None)
    if what == "fake":
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
            assert sparse_lookup(table, ADDRESSES, scores, 2).shape == (2, 80)
    else:
        assert sparse_lookup(table, ADDRESSES, scores, 2).shape == (2, 80)
    assert not calls


def test_shapes_that_do_not_fit_never_reach_a_kernel(calls: list[str]) -> None:
    table, x = normal(3, (6, 40), (2, 39))
    sparse_gate(table, ADDRESSES, x)  # the reference takes the first 39 columns
    with pytest.raises((RuntimeError, ValueError)):
        sparse_lookup(table, ADDRESSES, torch.ones(1, 3, 1), 2)
    assert not calls


@pytest.mark.parametrize("n_row, n_col, k", [(360, 300, 16), (747, 570, 568), (8968, 151, 45), (1300, 1200, 1100)])
@pytest.mark.parametrize("size", [2, 1000])
def test_selection_is_exact_among_ties_and_zeros(n_row: int, n_col: int, k: int, size: int) -> None:
    """Whole numbers, whose sums are exact, against stable sorts: several blocks of scores, thresholds at 0, ties."""
    generator = torch.Generator().manual_seed(k)

    def whole(limit: int, *shape: int) -> torch.Tensor:
        return torch.randint(-limit, limit, shape, generator=generator).float()

    row, col, core = whole(size, 2, 1, 2, n_row), whole(size, 2, 1, 2, n_col), whole(3, 1, 1, 2, 2)
    u, v = whole(3, 1, 2), whole(3, 1, 2)
    _, found = native.tucker_topk(row, col, u, v, core, k)
    for token in range(2):
        i, j = (
            (factor @ side[token, 0])[0].sort(descending=True, stable=True).indices[:k]
            for factor, side in ((u, row), (v, col))
        )
        grid = row[token, 0][:, i].T @ core[0, 0] @ col[token, 0][:, j]
        best = grid.flatten().sort(descending=True, stable=True).indices[:k]
        assert found[token].tolist() == (i[best // len(j)] * n_col + j[best % len(j)]).tolist()
