"""Raw rows and plots of full benchmark runs, and what writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def save(name: str, result: dict[str, Any], rows: list[dict[str, Any]], draw: Callable[[Any], None]) -> None:
    """`name`.json with the summary and every row, `name`.png drawn by `draw` on one set of axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    (FOLDER / f"{name}.json").write_text(json.dumps({"summary": result, "rows": rows}, indent=1, sort_keys=True) + "\n")
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    draw(axes)
    figure.savefig(FOLDER / f"{name}.png", dpi=120)
    pyplot.close(figure)
