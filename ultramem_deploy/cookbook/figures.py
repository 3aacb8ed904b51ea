"""The one figure of a stage's receipt that a summary shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..units import size

Receipt = Mapping[str, Any]


def key_figure(stage: str, receipt: Receipt) -> str:
    """What the stage proved or measured, in a few words; see docs/recipes.md."""
    return _FIGURES[stage](receipt)


def _told(value: Any, digits: int) -> str:
    """A number; one that is not finite stands in a receipt as None or by its name."""
    return f"{value:.{digits}g}" if isinstance(value, (int, float)) else "not finite"


def _upcycle(receipt: Receipt) -> str:
    if "perplexity_ratio" in receipt:
        return f"perplexity {_told(receipt['perplexity_ratio'], 4)}x the source's, KL {_told(receipt['kl'], 3)}"
    if "parameters_total" not in receipt:
        return f"preserving: {receipt['preserving']}"
    return f"{receipt['parameters_total']:,} parameters, preserving: {receipt['preserving']}"


def _fold(receipt: Receipt) -> str:
    return f"max relative error {receipt['max_relative_error']:.2g}"


def _quantize(receipt: Receipt) -> str:
    before, after = receipt["perplexity_before"], receipt["perplexity_after"]
    if before is None:
        return f"{size(receipt['bytes_before'])} became {size(receipt['bytes_after'])}"
    return f"perplexity {_told(before, 5)} became {_told(after, 5)}"


def _heal(receipt: Receipt) -> str:
    before, after = receipt["perplexity_before"], receipt["perplexity_after"]
    return f"held-out perplexity {_told(before, 4)} became {_told(after, 4)}"


def _verify(receipt: Receipt) -> str:
    return f"max abs logit error {_told(receipt['max_abs_logit_error'], 2)}, KL {_told(receipt['mean_kl'], 2)}"


_FIGURES: dict[str, Callable[[Receipt], str]] = {
    "convert": lambda receipt: f"{receipt['family']}, {receipt['tensors']} tensors",
    "upcycle": _upcycle,
    "heal": _heal,
    "fold": _fold,
    "quantize": _quantize,
    "export": lambda receipt: f"{receipt['nodes']} nodes, weights linked",
    "verify": _verify,
    "bundle": lambda receipt: f"{size(receipt['table_bytes'])} in tables",
}
