"""What each stage of a recipe can be told: the options of its verb that change the output, under the same names.

What a machine decides (jobs, memory budget, copying, overwriting) is no part of a recipe; `run` is told it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, create_model

from ..converters.heal.options import HealOptions
from ..converters.upcycle.expert_options import ExpertOptions
from ..converters.upcycle.identity_options import IdentityOptions
from ..converters.upcycle.neuron_options import NeuronOptions

Floats = Literal["keep", "float32", "bfloat16", "float16"]


class StageOptions(BaseModel):
    """Base of every stage's options: no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def given(self) -> dict[str, Any]:
        """The options that the recipe sets; the stage's own defaults hold for all others."""
        return self.model_dump(exclude_unset=True)


class ConvertOptions(StageOptions):
    """`convert`, towards the canonical layout."""

    family: str | None = None
    dtype: Floats = "keep"


class FoldOptions(StageOptions):
    """`fold`."""

    mode: Literal["expand", "shuffle", "keys", "auto"] | None = None
    dtype: Floats = "keep"
    batch: int | list[int] | None = None
    order: Literal["frequency"] | None = None
    profile: str | None = None
    text: str | None = None


class QuantizeOptions(StageOptions):
    """`quantize`."""

    tables: Literal["int8", "int4", "float8_e4m3"] | None = None
    dense: Literal["int8", "int4"] | None = None
    text: str | None = None


class ExportOptions(StageOptions):
    """`export`."""

    target: Literal["ort", "portable"] = "ort"


class BundleOptions(StageOptions):
    """`bundle` of an exported model; no stage of a recipe builds an engine."""

    runtime: Literal["onnxruntime"] = "onnxruntime"
    with_plugins: bool = False


class VerifyOptions(StageOptions):
    """`verify` of the newest artifact. `reference` is "source" or an earlier stage; None: what that artifact was
    made from."""

    reference: str | None = None
    text: str | None = None
    tokens: int = 512
    max_abs: float | None = None
    kl: float | None = None
    runtime: Literal["torch", "ort", "ort-bodies"] | None = None


def _from_dataclass(name: str, kind: type[Any], **more: Any) -> type[StageOptions]:
    """The fields of `kind` as a stage's options: types from the defaults, choices from the metadata."""
    told: dict[str, Any] = {}
    for field in fields(kind):
        choices = field.metadata.get("choices")
        told[field.name] = (Literal[tuple(choices)] if choices else type(field.default), field.default)
    return create_model(name, __base__=StageOptions, **told, **more)


_TEXT: Any = (str | None, None)
UPCYCLE: Mapping[str, type[StageOptions]] = {
    "identity": _from_dataclass("IdentityUpcycle", IdentityOptions, method=(str, "identity")),
    "neurons": _from_dataclass("NeuronUpcycle", NeuronOptions, method=(str, "neurons"), text=_TEXT),
    "experts": _from_dataclass("ExpertUpcycle", ExpertOptions, method=(str, "experts"), text=_TEXT),
}
"""The options of `upcycle`, by method."""

STAGES: Mapping[str, type[StageOptions]] = {
    "convert": ConvertOptions,
    "upcycle": UPCYCLE["identity"],
    "heal": _from_dataclass("HealStage", HealOptions, text=_TEXT, distill=_TEXT, retain=_TEXT, plot=_TEXT),
    "fold": FoldOptions,
    "quantize": QuantizeOptions,
    "export": ExportOptions,
    "verify": VerifyOptions,
    "bundle": BundleOptions,
}
"""Stage name -> its options."""
