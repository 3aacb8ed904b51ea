"""The command `ultramem-deploy VERB`: one thin file a verb, which is imported when it runs."""

from __future__ import annotations

from .app import main

__all__ = ["main"]
