"""What the parts of manifest.json are, checked where it is read: whoever reads on may take them as they are.

More keys than these are no error: a later release may write them under the same schema.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import ConfigDict, NonNegativeInt, TypeAdapter, ValidationError

_STRICT = ConfigDict(extra="ignore", strict=True)


@dataclass(frozen=True)
class _File:
    __pydantic_config__ = _STRICT
    size: NonNegativeInt
    sha256: str


@dataclass(frozen=True)
class _Table:
    __pydantic_config__ = _STRICT
    name: str
    file: str
    offset: NonNegativeInt
    bytes: NonNegativeInt
    dtype: str
    shape: list[NonNegativeInt]
    sha256: str
    rows_per_token: NonNegativeInt


@dataclass(frozen=True)
class _Plugin:
    __pydantic_config__ = _STRICT
    file: str
    host: str
    platform: str
    version: str


@dataclass(frozen=True)
class _Requires:
    __pydantic_config__ = _STRICT
    plugin: str
    operators: dict[str, Any]


@dataclass(frozen=True)
class _OrtRequires(_Requires):
    onnxruntime: str


@dataclass(frozen=True)
class _Graph:
    __pydantic_config__ = _STRICT
    file: str
    uses_operators: bool


@dataclass(frozen=True)
class _Engine:
    __pydantic_config__ = _STRICT
    embeds_plugin: bool


@dataclass(frozen=True)
class _Manifest:
    __pydantic_config__ = _STRICT
    graph: _Graph
    model: dict[str, Any]
    tables: list[_Table]
    tokenizer: dict[str, str]
    plugins: list[_Plugin]
    files: dict[str, _File]


@dataclass(frozen=True)
class _OrtManifest(_Manifest):
    runtime: Literal["onnxruntime"]
    requires: _OrtRequires


@dataclass(frozen=True)
class _EngineManifest(_Manifest):
    runtime: Literal["tensorrt"]
    requires: _Requires
    engine: _Engine


def problem(document: bytes, runtime: str) -> str | None:
    """The first thing that is wrong with a manifest (JSON) of a bundle for `runtime`, or None."""
    try:
        _adapter(runtime).validate_json(document)
    except ValidationError as error:
        first = error.errors()[0]
        found = "" if first["type"] == "missing" else f", found {str(first['input'])[:60]}"
        return f"{'.'.join(map(str, first['loc']))}: {first['msg'][:1].lower()}{first['msg'][1:]}{found}"
    return None


@cache
def _adapter(runtime: str) -> TypeAdapter[Any]:
    return TypeAdapter(_OrtManifest if runtime == "onnxruntime" else _EngineManifest)
