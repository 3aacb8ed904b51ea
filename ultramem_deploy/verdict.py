"""What the last `verify` of an artifact said, kept in its directory: an engine is not built of one that failed."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from .checkpoint.files import write_atomic
from .checkpoint.provenance import PROVENANCE_NAME, pretty_json
from .errors import CheckFailed, InputError

VERDICT_NAME = ".verified"  # no name that a stage takes for a part of its source


def record_verdict(artifact: Path, reason: str | None) -> None:
    """Note that `artifact` passed (None), or why it failed; where a stage of ours made it and it can be written."""
    made = _made(artifact)
    if made is not None:
        with contextlib.suppress(InputError):
            write_atomic(artifact / VERDICT_NAME, pretty_json({"artifact": made, "reason": reason}))


def refuse_failed(artifact: Path) -> None:
    """Raise CheckFailed where the last `verify` of what `artifact` now holds failed; one never verified is no error."""
    try:
        verdict = json.loads((artifact / VERDICT_NAME).read_bytes())
    except (OSError, ValueError):
        return
    if isinstance(verdict, dict) and verdict.get("artifact") == _made(artifact) and verdict.get("reason"):
        raise CheckFailed(
            f"{artifact}: its last verify failed ({str(verdict['reason']).removeprefix('verify: ')}); make it again, "
            "or verify it with limits that it meets, and then build"
        )


def _made(artifact: Path) -> str | None:
    """SHA-256 of the provenance: made again, an artifact is another."""
    with contextlib.suppress(OSError):
        return hashlib.sha256((artifact / PROVENANCE_NAME).read_bytes()).hexdigest()
    return None
