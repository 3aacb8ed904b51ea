"""What the dense decoders that transformers saves have in common; a family's own file holds only what differs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.errors import InputError
from ultramem_deploy.layout import decoder_shapes
from ultramem_deploy.spec import DecoderSpec, ModelSpec, NormSpec, RopeSpec, model_problems, read_json

from .base import Importer, ImportPlan, Source, described
from .companions import GENERATION_CONFIG, find_companions
from .config_reader import ConfigReader, Key
from .experts import split_experts
from .known_keys import ACTIVATIONS, FIXED_KEYS, IGNORED_KEYS
from .matching import NameMap, match_tensors
from .rope_config import read_rope
from .tokens import read_tokens

MAX_LAYERS = 10_000
WEIGHT_DTYPES = ("float32", "bfloat16", "float16", "float64")
_HEAD = "lm_head.weight"
_EMBEDDING = "model.embed_tokens.weight"
_IGNORABLE = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.rotary_emb\.inv_freq")

DECODER_KEYS: Mapping[str, Key] = MappingProxyType(
    {
        "hidden_size": Key(("hidden_size",)),
        "intermediate_size": Key(("intermediate_size",)),
        "num_hidden_layers": Key(("num_layers",), maximum=MAX_LAYERS),
        "num_attention_heads": Key(("num_heads",)),
        "num_key_value_heads": Key(("num_kv_heads",), default=None),
        "head_dim": Key(("head_dim",), default=None),
        "vocab_size": Key(("vocab_size",)),
        "max_position_embeddings": Key(("max_positions",)),
        "tie_word_embeddings": Key(("tie_embeddings",), bool, False),
    }
)
"""Keys that every family has, and the fields of DecoderSpec that take them."""

RMS_KEYS: Mapping[str, Key] = MappingProxyType({"rms_norm_eps": Key(("norm_eps",), float)})
ATTENTION_BIAS = Key(("qkv_bias", "attention_output_bias"), bool, False)


@dataclass(frozen=True)
class HuggingFaceImporter(Importer):
    """A family given by data: its architecture, its keys, the fields it fixes, the names of its tensors.

    `config_map`: source key -> DecoderSpec fields. `constants`: fields that the family fixes. `fixed`: keys supported
    with some values alone. `names`: canonical -> source tensor names. `quirks` is for what data cannot say.
    """

    family: str
    architecture: str
    config_map: Mapping[str, Key]
    constants: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Collection[Any]] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    names: NameMap = field(default_factory=NameMap)
    activation_key: str = "hidden_act"

    @property
    def recognises(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.architecture,)

    def detect(self, source: Source) -> bool:
        named = source.architectures
        model_type_fits = source.model_type in ("", self.family)
        if not named:
            return source.model_type == self.family
        return model_type_fits and named == (self.architecture,)

    def near_miss(self, source: Source) -> str | None:
        if source.model_type == self.family:
            found = shown(source.architectures)
            return f"of model_type {self.family} only {self.architecture} is supported, found {found}"
        if self.architecture in source.architectures:
            return f"{self.architecture} goes with model_type {self.family}, found {shown(source.model_type)}"
        return None

    def plan(self, source: Source) -> ImportPlan:
        reader = ConfigReader(source.config, source.where)
        if not self.detect(source):
            reader.warnings.append(f"read as {self.family} as asked; config.json names {described(source)}")
        spec = self._spec(reader, source)
        checkpoint = source.checkpoint
        _check_dtypes(checkpoint)
        wanted = decoder_shapes(spec.decoder)
        ignorable = [*_IGNORABLE, *self.ignorable(spec), *_spare_head(reader, checkpoint, spec.decoder.tie_embeddings)]
        held = split_experts(checkpoint, self.names)
        shapes = {name: tensor.shape for name, tensor in held.items()}
        pairs = match_tensors(str(source.path), wanted, shapes, self.names, ignorable)
        tensors = {ours: held[theirs] for ours, theirs in pairs.items()}
        return ImportPlan(self.family, spec, tensors, reader.warnings, find_companions(source.directory))

    def _spec(self, reader: ConfigReader, source: Source) -> ModelSpec:
        decoder = self.decoder(reader)
        generation = source.directory / GENERATION_CONFIG
        more = read_json(generation) if generation.is_file() else {}
        tokens = read_tokens(reader, more, decoder.vocab_size)
        fixed = {**FIXED_KEYS, **self.fixed}
        reader.fixed({key: values for key, values in fixed.items() if key not in self.config_map})
        spec = ModelSpec(decoder, tokens=tokens, source_family=self.family)
        derived = [] if reader.failed else model_problems(spec)
        reader.finish(IGNORED_KEYS | self.ignored, derived)
        return spec

    def decoder(self, reader: ConfigReader) -> DecoderSpec:
        """The decoder that the configuration describes; problems go to the reader."""
        fields = reader.fields({**DECODER_KEYS, **self.config_map}) | dict(self.constants)
        if "norm_eps" in fields:
            fields["norm"] = NormSpec("rms", fields.pop("norm_eps"))
        fields["num_kv_heads"] = fields["num_kv_heads"] or fields["num_heads"]
        fields["head_dim"] = fields["head_dim"] or _head_dim(reader, fields["hidden_size"], fields["num_heads"])
        fields["rope"] = self.rope(reader, fields["max_positions"])
        fields["activation"] = _activation(reader, self.activation_key)
        self.quirks(reader, fields)
        return DecoderSpec(**fields)

    def rope(self, reader: ConfigReader, max_positions: int) -> RopeSpec:
        """The positions of (non-sliding) attention."""
        return read_rope(reader, max_positions)

    def ignorable(self, spec: ModelSpec) -> tuple[str, ...]:
        """Regular expressions of source tensors that the decoder does not use; the default has none."""
        return ()

    def quirks(self, reader: ConfigReader, fields: dict[str, Any]) -> None:
        """Change `fields` (of DecoderSpec) as the family's own keys ask; the default has nothing to change."""


def _head_dim(reader: ConfigReader, hidden: int, heads: int) -> int:
    if hidden % heads and not reader.failed & {"hidden_size", "num_attention_heads"}:
        reader.problem(f"head_dim: missing, and hidden_size {hidden} is no multiple of num_attention_heads {heads}")
    return max(hidden // heads, 1)


def _activation(reader: ConfigReader, key: str) -> str:
    name = reader.raw(key, "silu")
    if not isinstance(name, str) or name not in ACTIVATIONS:
        reader.problem(f"{key}: expected one of {', '.join(ACTIVATIONS)}, found {shown(name)}")
        return "silu"
    return ACTIVATIONS[name]


def _check_dtypes(checkpoint: Checkpoint) -> None:
    bad = {name: info.dtype for name, info in checkpoint.tensors.items() if info.dtype not in WEIGHT_DTYPES}
    if bad:
        name = sorted(bad)[0]
        raise InputError(
            f"{checkpoint.path}: tensor {shown(name)} ({len(bad)} such) holds {bad[name]}, expected one of"
            f" {', '.join(WEIGHT_DTYPES)}; import the model that was quantised, not its quantised form"
        )


def _spare_head(reader: ConfigReader, checkpoint: Checkpoint, tied: bool) -> list[str]:
    """Patterns of output projections to leave out: a tied model's, if a mere copy. InputError on contradictions."""
    held = _HEAD in checkpoint.tensors
    if not tied and not held:
        raise InputError(
            f"{checkpoint.path}: tensor {_HEAD} is missing, though config.json does not tie it to {_EMBEDDING};"
            " if the model was trained with tied embeddings, set tie_word_embeddings to true"
        )
    if tied and held:
        _check_tied(reader, checkpoint)
    return [_HEAD.replace(".", r"\.")] if tied else []


def _check_tied(reader: ConfigReader, checkpoint: Checkpoint) -> None:
    """A tied model may carry a copy of its embedding as output projection, nothing else."""
    one, two = checkpoint.info(_HEAD), checkpoint.tensors.get(_EMBEDDING)
    if two is None or (one.shape, one.dtype) != (two.shape, two.dtype) or not _equal(checkpoint):
        raise InputError(
            f"{checkpoint.path}: config.json says tie_word_embeddings true, but {_HEAD} differs from {_EMBEDDING};"
            " set tie_word_embeddings to false if the model has an output projection of its own"
        )
    reader.warnings.append(f"{_HEAD}: equals {_EMBEDDING}, to which config.json ties it; dropped")


def _equal(checkpoint: Checkpoint, step: int = 4096) -> bool:
    count = checkpoint.info(_HEAD).shape[0] if checkpoint.info(_HEAD).shape else 1
    parts = ((start, min(start + step, count)) for start in range(0, count, step))
    return all(
        np.array_equal(_bytes(checkpoint.read_rows(_HEAD, *part)), _bytes(checkpoint.read_rows(_EMBEDDING, *part)))
        for part in parts
    )


def _bytes(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.reshape(-1).view(np.uint8)
