"""The held-out perplexity over the tokens trained on, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultramem_deploy.errors import InputError

_LABELS = {"perplexity": "text", "retained": "retained text"}


def plot(path: Path, receipt: dict[str, Any]) -> None:
    """Draw the curve of a receipt, PNG. Raises InputError where the file cannot be written."""
    from matplotlib.figure import Figure

    points = receipt["curve"]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for name, label in _LABELS.items():
        if name in points[0]:
            axis.plot([p["tokens"] for p in points], [float(p[name]) for p in points], marker="o", label=label)
    axis.set(xlabel="tokens trained on", ylabel="held-out perplexity", title=f"heal on {receipt['text']}")
    axis.legend()
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise InputError(f"--plot: {path}: cannot be written: {error.strerror or error}") from None
