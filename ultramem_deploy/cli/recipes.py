"""`recipes ls`, `recipes show`, `recipes cp` and `recipes validate`."""

from __future__ import annotations

from pathlib import Path

import click

from ..cookbook import files
from ..errors import ConfigError
from .options import json_option
from .output import aligned, counted, print_json


@click.group("recipes", epilog="\b\nExample:\n  ultramem-deploy recipes cp upcycle-identity mine.yaml")
def command() -> None:
    """Recipes: the stages of a whole job and their options in one YAML file, for `ultramem-deploy run`.

    RECIPE is a name that `recipes ls` prints, or the path of a file.
    """


@command.command("ls", epilog="\b\nExample:\n  ultramem-deploy recipes ls")
@json_option
def ls(as_json: bool) -> None:
    """List the recipes of this project."""
    recipes = [files.load(file) for file in files.shipped()]
    if as_json:
        print_json({"recipes": [recipe.to_dict() for recipe in recipes]})
        return
    for line in aligned({recipe.name: recipe.description for recipe in recipes}):
        click.echo(line)


@command.command("show", epilog="\b\nExample:\n  ultramem-deploy recipes show upcycle-identity")
@click.argument("recipe")
@json_option
def show(recipe: str, as_json: bool) -> None:
    """Print a recipe; its header says what it costs."""
    if as_json:
        print_json(files.load(recipe).to_dict())
    else:
        click.echo(files.find(recipe).read_bytes(), nl=False)


@command.command("cp", epilog="\b\nExample:\n  ultramem-deploy recipes cp upcycle-identity mine.yaml")
@click.argument("recipe")
@click.argument("destination", type=click.Path(path_type=Path))
@json_option
def cp(recipe: str, destination: Path, as_json: bool) -> None:
    """Copy a recipe to DESTINATION, a file or directory, to edit it."""
    target = files.copy(recipe, destination)
    if as_json:
        print_json({"recipe": recipe, "output": str(target)})
    else:
        click.echo(f"{target}: edit it, then: ultramem-deploy recipes validate {target}")


@command.command("validate", epilog="\b\nExample:\n  ultramem-deploy recipes validate mine.yaml")
@click.argument("recipe")
@json_option
def validate(recipe: str, as_json: bool) -> None:
    """Check a recipe and tell everything that is wrong with it; exit code 2 where something is."""
    try:
        told = files.load(recipe)
    except ConfigError as error:
        if as_json:
            print_json({"recipe": recipe, "valid": False, "problems": error.problems})
        raise
    if as_json:
        print_json({"recipe": recipe, "valid": True, "problems": []})
    else:
        stages = ", ".join(step.name for step in told.steps)
        click.echo(f"{recipe}: valid, {counted(len(told.steps), 'stage')}: {stages}")
