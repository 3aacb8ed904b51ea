"""A recipe as it is read and checked: every problem is found before any work, and told at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ..errors import ConfigError
from .options import STAGES, UPCYCLE, StageOptions

KEYS = ("description", "stages")
SOURCE = "source"


@dataclass(frozen=True)
class Step:
    """One stage of a recipe. `name` is the stage's, with -2, -3, … where it occurs again: so its output is called."""

    name: str
    stage: str
    options: StageOptions


@dataclass(frozen=True)
class Recipe:
    """`name` is the file's, without its ending."""

    name: str
    description: str
    steps: tuple[Step, ...]

    def to_dict(self) -> dict[str, Any]:
        """As the file says it: name, description, stages (a list of {stage: options})."""
        stages = [{step.stage: step.options.given()} for step in self.steps]
        return {"name": self.name, "description": self.description, "stages": stages}


def parse(document: Any, name: str, where: str, settings: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a YAML document; `settings` replace options, by "stage.option".

    Raises ConfigError with every unknown key (and the nearest known one), wrong value, value that no model can be
    given and stage out of place.
    """
    if not isinstance(document, dict):
        raise ConfigError(where, [f"expected a mapping with {' and '.join(KEYS)}, found {_shown(document)}"])
    problems = [unknown("", key, KEYS) for key in document if key not in KEYS]
    description = document.get("description", "")
    if not isinstance(description, str) or not description.strip():
        problems.append("description: expected a sentence that says what the recipe makes")
    steps = _steps(document.get("stages"), dict(settings or {}), problems)
    problems += _places(steps)
    if problems:
        raise ConfigError(where, problems)
    return Recipe(name, description.strip(), tuple(step for step in steps if step is not None))


def _steps(stages: Any, settings: dict[str, Any], problems: list[str]) -> list[Step | None]:
    """The steps, None for one that is wrong; what is wrong goes into `problems`."""
    if not isinstance(stages, list) or not stages:
        problems.append("stages: expected a list of stages such as '- convert: {dtype: keep}'")
        return []
    steps: list[Step | None] = []
    seen: dict[str, int] = {}
    for index, entry in enumerate(stages):
        stage, options = _entry(entry)
        if not isinstance(stage, str) or stage not in STAGES:
            problems.append(unknown(f"stages[{index}]", stage, STAGES))
            steps.append(None)
            continue
        seen[stage] = seen.get(stage, 0) + 1
        name = stage if seen[stage] == 1 else f"{stage}-{seen[stage]}"
        own = {key: settings.pop(key) for key in list(settings) if key.partition(".")[0] == name}
        checked = _checked(name, stage, options, {key.partition(".")[2]: value for key, value in own.items()}, problems)
        steps.append(Step(name, stage, checked) if checked else None)
    names = [step.name for step in steps if step]
    problems += [unknown("--set", key, names, "stage.option with one of the stages") for key in settings]
    return steps


def _entry(entry: Any) -> tuple[Any, Any]:
    """(stage, options) of "export", {"export": None} or {"export": {…}}."""
    if isinstance(entry, dict) and len(entry) == 1:
        ((stage, options),) = entry.items()
        return stage, {} if options is None else options
    return entry, {}


def _checked(
    name: str, stage: str, options: Any, changes: Mapping[str, Any], problems: list[str]
) -> StageOptions | None:
    if not isinstance(options, dict):
        problems.append(f"{name}: expected options such as {{key: value}}, found {_shown(options)}")
        return None
    told = {**options, **changes}
    kind = STAGES[stage]
    if stage == "upcycle":
        method = told.get("method", "identity")
        if not isinstance(method, str) or method not in UPCYCLE:
            problems.append(unknown(f"{name}.method", method, UPCYCLE))
            return None
        kind = UPCYCLE[method]
    try:
        checked = kind.model_validate(told)
    except ValidationError as error:
        problems += [_problem(name, one, kind) for one in error.errors()]
        return None
    problems += [f"{name}.{option}: {said}" for option, said in checked.problems()]
    return checked


def _problem(name: str, error: Any, kind: type[StageOptions]) -> str:
    key = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return unknown(name, key, kind.model_fields)
    said = error["msg"].removeprefix("Input should be ")
    return f"{name}.{key}: expected {said}, found {_shown(error['input'])}"


def _places(steps: Iterable[Step | None]) -> list[str]:
    """Stages that stand where they have nothing to read, and references to stages that did not run before."""
    problems, before, state, all_known = [], list[str](), "a checkpoint", True
    for step in steps:
        if step is None:
            state, all_known = "", False  # A wrong stage is told once, not again by what follows.
            continue
        problem = _place(step, before, state, all_known)
        problems += [f"{step.name}: {problem}"] if problem else []
        state = {"export": "an exported model", "bundle": "a bundle"}.get(step.stage, state)
        before.append(step.name)
    return problems


def _place(step: Step, before: list[str], state: str, all_known: bool) -> str:
    made = [name for name in before if not name.startswith("verify")]
    if step.stage == "verify":
        reference = step.options.given().get("reference")
        known = [SOURCE, *made]
        if reference is not None and reference not in known and all_known:
            return unknown("reference", reference, known)
        return "" if made or not state else "nothing was made before it; put it after a stage"
    if step.stage == "convert":
        return "must be the first stage" if before else ""
    wanted = "an exported model" if step.stage == "bundle" else "a checkpoint"
    return f"reads {wanted}, found {state}; put it elsewhere" if state and state != wanted else ""


def unknown(where: str, key: Any, known: Iterable[str], what: str = "") -> str:
    """ "heal: unknown 'step'; did you mean 'steps'?", or all that is known where nothing is near."""
    names = list(known)
    near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.6)
    prefix = f"{where}: " if where else ""
    if near:
        return f"{prefix}unknown {_shown(key)}; did you mean {near[0]!r}?"
    return f"{prefix}unknown {_shown(key)}; expected {what or 'one of'} {', '.join(names)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
