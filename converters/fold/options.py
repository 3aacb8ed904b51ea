"""What `fold` can be told; apart from the folding, so that recipes can be checked without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ultramem_deploy.option_problems import Problem
from ultramem_deploy.planning.choice import MODES

DTYPES = ("keep", "float32", "bfloat16", "float16")
ORDERS = ("frequency",)


def fold_problems(
    *,
    mode: str | None = None,
    dtype: str = "keep",
    batch: Sequence[int] | None = None,
    order: str | None = None,
    profile: str | Path | None = None,
    text: str | Path | None = None,
) -> Iterator[Problem]:
    """What no model can be given; `mode` None is "expand" where there is no `order`."""
    if mode is not None and mode not in MODES:
        yield "mode", f"expected one of {', '.join(MODES)}, found {mode!r}"
    if dtype not in DTYPES:
        yield "dtype", f"expected one of {', '.join(DTYPES)}, found {dtype!r}"
    if batch is not None and mode != "auto":
        yield "batch", f"only --mode auto chooses by the batch, found --mode {mode or 'expand'}; leave it out"
    if batch is not None and (not batch or min(batch) < 1):
        yield "batch", f"expected positive numbers, found {', '.join(map(str, batch)) or 'none'}"
    yield from _order_problems(order, mode is None and dtype == "keep" and batch is None, profile, text)


def _order_problems(
    order: str | None, alone: bool, profile: str | Path | None, text: str | Path | None
) -> Iterator[Problem]:
    if order is None:
        for name, given in (("profile", profile), ("text", text)):
            if given is not None:
                yield name, "only --order frequency reads it"
        return
    if order not in ORDERS:
        yield "order", f"expected {' or '.join(ORDERS)}, found {order!r}"
    if not alone:
        yield "order", "a fold of its own that rounds nothing; run fold with --mode first"
    if profile is not None and text is not None:
        yield "profile", "holds counts already; leave out --text"
