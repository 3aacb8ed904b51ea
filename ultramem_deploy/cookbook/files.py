"""Where recipes lie and how they are read: those of this project by name, anybody's by path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.files import write_atomic
from ..errors import InputError
from ..yaml_file import parse_yaml, read_yaml
from .recipe import Recipe, parse, unknown

SHIPPED = Path(__file__).parent / "recipes"


def shipped() -> list[Path]:
    """The files of this project's recipes, by name."""
    return sorted(SHIPPED.glob("*.yaml"))


def find(recipe: str | Path) -> Path:
    """The file of a recipe, given by its name or path; InputError where there is none."""
    path = Path(recipe)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise InputError(f"{path}: no such recipe file; `ultramem-deploy recipes ls` lists those that have names")
    found = {file.stem: file for file in shipped()}
    if str(recipe) not in found:
        raise InputError(unknown("recipe", str(recipe), found))
    return found[str(recipe)]


def load(recipe: str | Path, settings: Mapping[str, Any] | None = None) -> Recipe:
    """Read and check a recipe; `settings` as in `recipe.parse`. ConfigError tells every problem of the file."""
    file = find(recipe)
    return parse(read_yaml(file), file.stem, str(file), settings)


def copy(recipe: str | Path, destination: str | Path) -> Path:
    """Copy a recipe's file, to edit it; returns the new file. InputError where one is there already."""
    file, target = find(recipe), Path(destination)
    target = target / file.name if target.is_dir() else target
    if target.exists():
        raise InputError(f"{target}: exists; choose another name")
    write_atomic(target, file.read_bytes())
    return target


def upcycle_options(recipe: str | Path) -> dict[str, Any]:
    """The options of a recipe's `upcycle` stage, for that verb alone; InputError where it has none or several."""
    found = [step for step in load(recipe).steps if step.stage == "upcycle"]
    if len(found) != 1:
        raise InputError(f"{recipe}: expected one upcycle stage, found {len(found)}; name another recipe")
    return found[0].options.given()


def setting(text: str) -> tuple[str, Any]:
    """The "stage.option=value" of `--set`, its value read as YAML."""
    name, equals, value = text.partition("=")
    stage, dot, option = name.partition(".")
    if not (equals and dot and stage and option):
        raise InputError(f"--set: expected STAGE.OPTION=VALUE such as heal.steps=100, found {text!r}")
    return name, parse_yaml(value, f"--set: {name}")
