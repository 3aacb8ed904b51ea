"""Run the stages of a recipe, each from what the one before made. What is up to date is not made again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from .. import pipeline
from ..checkpoint.files import sha256_file, write_atomic
from ..checkpoint.provenance import fingerprint, pretty_json, read_provenance, tool_version
from ..defaults import DEFAULT_BUDGET
from ..errors import CheckFailed, ConfigError, InputError, UltraMemError
from ..pipeline import Budget, Progress
from .figures import key_figure
from .files import find, load
from .recipe import SOURCE, Recipe, Step

Watch = Callable[[str], AbstractContextManager[Progress | None]]


def run(
    recipe: str | Path,
    src: str | Path,
    out: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    copy: bool = False,
    jobs: int | None = None,
    memory_budget: Budget = DEFAULT_BUDGET,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Run a recipe, by name or path, from `src`; every stage writes a directory of its name below `out`.

    `settings` replace options, by "stage.option"; `watch(name)` is a context that yields a stage's progress callback.
    Returns recipe, source, output (of the last stage that made one), seconds and stages: for each its name, stage,
    output, seconds, bytes, figure, up_to_date and receipt. Raises as the stages do, and ConfigError for the recipe.
    """
    told = load(recipe, settings)
    source, target = Path(src), Path(out)
    if not source.exists():
        raise InputError(f"{source}: no such file or directory")
    missing = _missing_files(told, target)
    if missing:
        raise ConfigError(str(find(recipe)), missing)
    machine = {"overwrite": overwrite, "copy": copy, "jobs": jobs, "memory_budget": memory_budget}
    kitchen = _Kitchen(told, target, machine, watch or (lambda _: nullcontext()), {SOURCE: source}, [source])
    start = time.perf_counter()
    rows = [kitchen.cook(step) for step in told.steps]
    return {
        "recipe": told.name,
        "source": str(source),
        "output": str(kitchen.line[-1]),
        "seconds": time.perf_counter() - start,
        "stages": rows,
    }


def _missing_files(recipe: Recipe, out: Path) -> list[str]:
    """What a stage is told to read that is no file, unless a stage before it makes it."""
    problems, made = [], [SOURCE]
    for step in recipe.steps:
        given = step.options.given()
        for option in ("text", "retain", "profile", "distill"):
            path = given.get(option)
            if path is None or (option == "distill" and path in made):
                continue
            if Path(path).is_dir() and option != "distill":
                problems.append(f"{step.name}.{option}: {path}: is a directory; expected a file")
            elif not Path(path).exists() and not Path(path).absolute().is_relative_to(out.absolute()):
                problems.append(f"{step.name}.{option}: {path}: no such file")
        made.append(step.name)
    return problems


@dataclass
class _Kitchen:
    """One run: `made` is every artifact by name, `line` the artifacts in the order they were made."""

    recipe: Recipe
    out: Path
    machine: dict[str, Any]
    watch: Watch
    made: dict[str, Path]
    line: list[Path]

    def cook(self, step: Step) -> dict[str, Any]:
        start = time.perf_counter()
        with self.watch(step.name) as progress, _told_of(step):
            output, receipt = (self._verify if step.stage == "verify" else self._make)(step, progress)
        return {
            "name": step.name,
            "stage": step.stage,
            "output": str(output),
            "seconds": time.perf_counter() - start,
            "bytes": _bytes(output),
            "figure": key_figure(step.stage, receipt),
            "up_to_date": bool(receipt.get("up_to_date")),
            "receipt": receipt,
        }

    def _make(self, step: Step, progress: Progress | None) -> tuple[Path, dict[str, Any]]:
        function: Callable[..., dict[str, Any]] = getattr(pipeline, step.stage)
        takes = signature(function).parameters
        machine = {name: value for name, value in self.machine.items() if name in takes}
        options = step.options.given()
        if options.get("distill") in self.made:
            options["distill"] = self.made[options["distill"]]
        output = self.out / step.name
        receipt = function(self.line[-1], output, progress=progress, **machine, **options)
        self.made[step.name] = output
        self.line.append(output)
        return output, receipt

    def _verify(self, step: Step, progress: Progress | None) -> tuple[Path, dict[str, Any]]:
        """Its record takes the place of an artifact: the same comparison of the same artifacts is not made twice."""
        options = step.options.given()
        name = options.pop("reference", None)
        reference = self.line[-2] if name is None else self.made[name]
        record, made_of = self.out / f"{step.name}.json", self._compared(reference, options)
        known = _record(record)
        if known.get("made_of") == made_of:
            return record, {**known["receipt"], "up_to_date": True}
        receipt = pipeline.verify(reference, self.line[-1], progress=progress, **options)
        write_atomic(record, pretty_json({"made_of": made_of, "receipt": receipt, "sha256": fingerprint(receipt)}))
        return record, receipt

    def _compared(self, reference: Path, options: Mapping[str, Any]) -> str:
        """Every artifact that was made so far, for each depends on all before it, and what is asked of them."""
        prints = [(read_provenance(path) or {}).get("fingerprint") for path in self.line[1:]]
        text = options.get("text")
        read = sha256_file(Path(text)) if text and Path(text).is_file() else None
        return fingerprint([prints, self.line.index(reference), dict(options), read, tool_version()])


@contextmanager
def _told_of(step: Step) -> Iterator[None]:
    """Errors of the stage with its name in the recipe in front."""
    try:
        yield
    except UltraMemError as error:
        kind = CheckFailed if isinstance(error, CheckFailed) else InputError
        raise kind(f"{step.name}: {str(error).removeprefix(f'{step.stage}: ')}") from error


def _record(file: Path) -> dict[str, Any]:
    """What a verification left; nothing where it is not there, not whole, or was edited."""
    try:
        known = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict) or not isinstance(known.get("receipt"), dict):
        return {}
    return known if known.get("sha256") == fingerprint(known["receipt"]) else {}


def _bytes(path: Path) -> int:
    """Size of a file, or of all files of a directory: what is linked counts as if it were copied."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
