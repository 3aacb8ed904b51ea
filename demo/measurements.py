"""Measurements kept beside the artifacts: a second run of the demo repeats none of an unchanged artifact."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ultramem_deploy.checkpoint import read_provenance


class Measurements:
    """A JSON file of results, keyed by what was measured and the fingerprints of the artifacts it was measured on."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._known: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def get(self, what: str, artifacts: list[Path], measure: Callable[[], Any]) -> Any:
        """The recorded result, or that of `measure()`, recorded."""
        prints = [(read_provenance(path) or {}).get("fingerprint", path.name) for path in artifacts]
        key = " ".join([what, *prints])
        if key not in self._known:
            self._known[key] = measure()
            partial = self.file.with_suffix(".tmp")
            partial.write_text(json.dumps(self._known, indent=1))
            partial.replace(self.file)
        return self._known[key]
