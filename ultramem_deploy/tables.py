"""Where tables lie while a model runs: a copy on huge pages, or the mapped files.

"resident": one copy that everything in the process shares; random rows of ordinary pages miss the TLB. "mapped": the
files as the system pages them in, every batch's rows asked for at once; for tables larger than memory. "auto": resident
where the copy takes at most half of the available memory; tables below 32 MiB are left as they are.
"""

from __future__ import annotations

import os

from .errors import InputError

MODES = ("auto", "resident", "mapped")
VARIABLE = "ULTRAMEM_TABLES"


def wanted(tables: str | None) -> str:
    """The mode that is asked for; None takes $ULTRAMEM_TABLES, else "auto". Raises InputError for what is no mode."""
    found = tables or os.environ.get(VARIABLE) or MODES[0]
    if found not in MODES:
        source = "tables" if tables else VARIABLE
        raise InputError(f"{source}: expected one of {', '.join(MODES)}, found {found!r}")
    return found
