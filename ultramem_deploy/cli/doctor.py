"""`doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..diagnosis import doctor
from ..errors import CheckFailed
from .options import EXISTING, json_option, verb
from .output import counted, print_json


@verb("doctor", "service")
@click.argument("bundle", type=EXISTING, required=False)
@json_option
def command(bundle: Path | None, as_json: bool) -> None:
    """Check Python, libraries, versions, the native operators and the machine; print the fix of what is wrong.

    With a BUNDLE, also every way in which loading it can fail here: files, hashes, versions, plugin, tokenizer.
    Exit code 1 where something required is missing. What is optional is marked with a dash.
    """
    checks = doctor(bundle)
    failed = [check for check in checks if check["required"] and not check["ok"]]
    if as_json:
        print_json({"ok": not failed, "checks": checks})
    else:
        for check in checks:
            _show(check, max(len(check["name"]) for check in checks))
    if failed:
        names = ", ".join(check["name"] for check in failed)
        raise CheckFailed(f"doctor: {counted(len(failed), 'required check')} failed: {names}")


def _show(check: dict[str, Any], width: int) -> None:
    mark = "ok  " if check["ok"] else "FAIL" if check["required"] else "-   "
    click.echo(f"{mark}  {check['name']:<{width}}  {' '.join(check['found'].split())}")
    if not check["ok"]:
        click.echo(f"      {'':<{width}}  expected {check['expected']}; fix: {check['fix']}")
