"""`python -m ultramem_deploy` is the command `ultramem-deploy`."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
