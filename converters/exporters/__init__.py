"""From the canonical checkpoint back to the layouts that people train in."""

from __future__ import annotations

from .olmo_ultramem import export_olmo_ultramem

__all__ = ["export_olmo_ultramem"]
