"""Where tables lie while a model runs: a copy on huge pages, or the mapped files.

"resident": one copy that everything in the process shares; random rows of ordinary pages miss the TLB. "mapped": the
files as the system pages them in, every batch's rows asked for at once; for tables larger than memory. "auto": resident
where the copy takes at most half of the available memory; tables below 32 MiB are left as they are.

Rows of mapped tables are asked for where a memory layer reads and looked up where it writes ("overlap"), in PyTorch.
"""

from __future__ import annotations

import os

from .errors import InputError

MODES = ("auto", "resident", "mapped")
VARIABLE = "ULTRAMEM_TABLES"
OVERLAP = "ULTRAMEM_OVERLAP"


def wanted(tables: str | None) -> str:
    """The mode that is asked for; None takes $ULTRAMEM_TABLES, else "auto". Raises InputError for what is no mode."""
    found = tables or os.environ.get(VARIABLE) or MODES[0]
    if found not in MODES:
        source = "tables" if tables else VARIABLE
        raise InputError(f"{source}: expected one of {', '.join(MODES)}, found {found!r}")
    return found


def overlapped(overlap: bool | None) -> bool:
    """Whether rows are asked for early; None takes $ULTRAMEM_OVERLAP ("0" or "1"), else yes. Raises InputError."""
    found = os.environ.get(OVERLAP) or "1"
    if overlap is None and found not in ("0", "1"):
        raise InputError(f"{OVERLAP}: expected 0 or 1, found {found!r}")
    return found == "1" if overlap is None else overlap
