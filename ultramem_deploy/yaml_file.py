"""YAML configurations, strictly: no tags, no aliases, no duplicate keys, numbers as people write them."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.errors import InputError

_MAX_BYTES = 1 << 20
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)")
# "1e-5" is a number to every program that wrote such a file, though not to YAML 1.1.
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+")


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file. Raises InputError where it is missing, damaged or no mapping."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path}: larger than {_MAX_BYTES} bytes, which no configuration is")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as YAML ({shown(str(error), 200)[1:-1]})") from None
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a YAML mapping, found {type(content).__name__}")
    return content


def parse_yaml(text: str, where: str) -> Any:
    """A YAML document as Python's own types. Raises InputError, beginning with `where`, for what is none."""
    yaml: Any = importlib.import_module("yaml")
    try:
        return yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        reason = " ".join(str(error).split()) if not isinstance(error, RecursionError) else "nested too deeply"
        raise InputError(f"{where}: cannot be read as YAML ({shown(reason, 200)[1:-1]})") from None


@cache
def _loader() -> Any:
    """A SafeLoader of ours; built late because importing yaml takes time that most commands need not spend."""
    yaml: Any = importlib.import_module("yaml")

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            # Aliases of aliases make a small file stand for a huge document.
            if self.check_event(yaml.events.AliasEvent):
                raise yaml.YAMLError("aliases are not supported: write the value out")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [key.value for key, _ in node.value if isinstance(key.value, str)]
            twice = sorted(name for name, count in Counter(names).items() if count > 1)
            if twice:
                raise yaml.YAMLError(f"key {twice[0]!r} appears twice")
            found = super().construct_mapping(node, deep)
            odd = [key for key in found if not isinstance(key, str)]
            if odd:
                raise yaml.YAMLError(f"key {odd[0]!r} is no name")
            return found

    kept = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:null")
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items():
        for tag, pattern in resolvers:
            if tag in kept:
                Loader.yaml_implicit_resolvers.setdefault(first, []).append((tag, pattern))
    digits = list("-+0123456789")
    # YAML 1.1 would read the path 5:8 as a number to base 60.
    Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(rf"^(?:{_INTEGER.pattern})$"), digits)
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"^(?:{_FLOAT.pattern})$"), [*digits, "."])
    return Loader
