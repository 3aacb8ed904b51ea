"""What each stage of a recipe can be told: the options of its verb that change the output, under the same names.

What a machine decides (jobs, memory budget, copying, overwriting) is no part of a recipe; `run` is told it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, create_model

from ..converters.fold.options import fold_problems
from ..converters.heal.options import HealOptions, source_problems
from ..converters.upcycle.expert_options import ExpertOptions
from ..converters.upcycle.identity_options import IdentityOptions
from ..converters.upcycle.neuron_options import NeuronOptions
from ..option_problems import Problem
from ..planning.quantization import NOTHING_ASKED
from ..tolerances import limit_problems

Floats = Literal["keep", "float32", "bfloat16", "float16"]


class StageOptions(BaseModel):
    """Base of every stage's options: no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def given(self) -> dict[str, Any]:
        """The options that the recipe sets; the stage's own defaults hold for all others."""
        return self.model_dump(exclude_unset=True)

    def problems(self) -> Iterator[Problem]:
        """Values outside their ranges, whatever the model: what the stage would refuse when it starts."""
        yield from ()


class ConvertOptions(StageOptions):
    """`convert`, towards the canonical layout."""

    family: str | None = None
    dtype: Floats = "keep"

    def problems(self) -> Iterator[Problem]:
        from ..converters.importers.registry import unknown_family

        if self.family is not None and (said := unknown_family(self.family)):
            yield "family", said


class FoldOptions(StageOptions):
    """`fold`."""

    mode: Literal["expand", "shuffle", "rank1", "keys", "auto"] | None = None
    dtype: Floats = "keep"
    batch: int | list[int] | None = None
    order: Literal["frequency"] | None = None
    profile: str | None = None
    text: str | None = None

    def problems(self) -> Iterator[Problem]:
        batch = [self.batch] if isinstance(self.batch, int) else self.batch
        return fold_problems(**(self.given() | {"batch": batch}))


class QuantizeOptions(StageOptions):
    """`quantize`."""

    tables: Literal["int8", "int4", "float8_e4m3"] | None = None
    dense: Literal["int8", "int4"] | None = None
    text: str | None = None

    def problems(self) -> Iterator[Problem]:
        if self.tables is None and self.dense is None:
            yield "tables", NOTHING_ASKED


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

    def problems(self) -> Iterator[Problem]:
        return limit_problems(self.tokens, self.max_abs, self.kl)


class DataclassOptions(StageOptions):
    """Options that a converter reads as the dataclass `kind`."""

    kind: ClassVar[type[Any]]

    def read(self) -> Any:
        """What the converter reads."""
        names = {field.name for field in fields(self.kind)}
        return self.kind(**{name: value for name, value in self.given().items() if name in names})

    def problems(self) -> Iterator[Problem]:
        yield from self.read().problems()


class HealStage(DataclassOptions):
    """`heal`."""

    text: str | None = None
    distill: str | None = None
    retain: str | None = None
    plot: str | None = None

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from source_problems(self.read(), self.distill, self.retain)


def _from_dataclass(
    name: str, kind: type[Any], base: type[DataclassOptions] = DataclassOptions, **more: Any
) -> type[DataclassOptions]:
    """The fields of `kind` as a stage's options: types from the defaults, choices from the metadata."""
    told: dict[str, Any] = {}
    for field in fields(kind):
        choices = field.metadata.get("choices")
        told[field.name] = (Literal[tuple(choices)] if choices else type(field.default), field.default)
    made = create_model(name, __base__=base, **told, **more)
    made.kind = kind
    return made


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
    "heal": _from_dataclass("Heal", HealOptions, HealStage),
    "fold": FoldOptions,
    "quantize": QuantizeOptions,
    "export": ExportOptions,
    "verify": VerifyOptions,
    "bundle": BundleOptions,
}
"""Stage name -> its options."""
