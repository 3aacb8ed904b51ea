"""`params.json` of Meta's memory code: the decoder and `productkey_args`, with that code's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.errors import ConfigError
from ultramem_deploy.spec import DecoderSpec, MemoryLayerSpec, ModelSpec, NormSpec, RopeSpec, TableSpec, model_problems

from .config_reader import ConfigReader, Key
from .huggingface import MAX_LAYERS

FAMILY = "meta-memory"
SHARED = "shared"
_DECODER = {
    "dim": Key(("hidden_size",), default=512),
    "n_layers": Key(("num_layers",), default=8, maximum=MAX_LAYERS),
    "n_heads": Key(("num_heads",)),
    "n_kv_heads": Key(("num_kv_heads",), default=None),
    "head_dim": Key(("head_dim",), default=None),
    "vocab_size": Key(("vocab_size",)),
    "max_seqlen": Key(("max_positions",), default=1024),
}
_MEMORY = {
    "mem_n_keys": Key(("keys",), default=1024),
    "mem_heads": Key(("heads",), default=4),
    "mem_knn": Key(("knn",), default=32),
    "mem_share_values": Key(("shared",), bool, True),
    "mem_k_dim": Key(("key_dim",), default=512),
    "swilu_projection": Key(("swilu",), bool, True),
    "peer_variant": Key(("peer",), bool, False),
    "mem_gated": Key(("gated",), bool, False),
}
_FIXED = {"sliding_window": (None,)}
_IGNORED = frozenset({"init_base_std", "init_std_factor", "seed", "weight_tying"})


@dataclass(frozen=True)
class MetaMemory:
    """What replaces the FFN of `blocks`; value_dim is None where values are as wide as the model."""

    blocks: tuple[int, ...]
    keys: int
    heads: int
    knn: int
    shared: bool
    key_dim: int
    swilu: bool
    peer: bool
    gated: bool
    value_dim: int | None

    @property
    def projected(self) -> bool:
        """Whether what was read goes through value_proj."""
        return not self.peer and (self.swilu or self.value_dim is not None)

    @property
    def gate(self) -> bool:
        """Whether what was read is multiplied by silu(swilu_projection)."""
        return self.swilu and not self.peer

    def table(self, block: int) -> str:
        return SHARED if self.shared else f"layer{self.blocks.index(block)}"


def model_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of params.json that describes the model: `model`, or everything."""
    section = config.get("model")
    return section if isinstance(section, dict) else config


def read_params(config: Mapping[str, Any], where: str) -> tuple[ModelSpec, MetaMemory]:
    """The canonical description and the memory's switches. ConfigError with every problem."""
    reader = ConfigReader(model_section(config), where)
    given = reader.raw("productkey_args", {})
    inner = ConfigReader(given if isinstance(given, dict) else {}, "productkey_args")
    if not isinstance(given, dict):
        reader.problem(f"productkey_args: expected an object, found {shown(given)}")
    decoder = _decoder(reader)
    memory = _memory(inner, decoder.num_layers)
    try:
        inner.finish({"value_fixed_lr"})
    except ConfigError as error:
        reader.problems += [f"productkey_args.{one}" for one in error.problems]
    spec = _spec(decoder, memory)
    derived = [] if reader.failed or reader.problems else model_problems(spec)
    reader.finish(_IGNORED, derived)
    return spec, memory


def _decoder(reader: ConfigReader) -> DecoderSpec:
    fields = reader.fields(_DECODER)
    hidden, heads = fields["hidden_size"], fields["num_heads"]
    if fields["head_dim"] is None and hidden % heads and not reader.failed:
        reader.problem(f"n_heads: must divide dim ({hidden}), found {heads}")
    fields["num_kv_heads"] = fields["num_kv_heads"] or heads
    fields["head_dim"] = fields["head_dim"] or max(1, hidden // heads)
    norm = NormSpec("rms", reader.number("norm_eps", Key((), float, 1e-5)))
    rope = RopeSpec(reader.number("rope_theta", Key((), float, 10000.0)))
    reader.fixed(_FIXED)
    return DecoderSpec(**fields, intermediate_size=_ffn_width(reader, hidden), norm=norm, rope=rope)


def _ffn_width(reader: ConfigReader, hidden: int) -> int:
    width = int(2 * (4 * hidden) / 3)
    factor = reader.number("ffn_dim_multiplier", Key((), float, None))
    multiple = reader.number("multiple_of", Key((), default=256))
    width = int(factor * width) if factor is not None else width
    return int(max(1, -(-width // multiple)) * multiple)


def _memory(reader: ConfigReader, layers: int) -> MetaMemory:
    fields = reader.fields(_MEMORY)
    if fields["key_dim"] % 2:
        reader.problem(f"mem_k_dim: must be even, found {fields['key_dim']}")
    width = reader.raw("mem_v_dim", -1)
    if type(width) is not int or not -1 <= width < 2**31 or width == 0:
        reader.problem(f"mem_v_dim: expected -1 or a positive whole number, found {shown(width)}")
        width = -1
    if fields["peer"] and width > 0:
        reader.problem(f"mem_v_dim: the PEER variant has -1, found {width}")
    return MetaMemory(_blocks(reader, layers), value_dim=width if width > 0 else None, **fields)


def _blocks(reader: ConfigReader, layers: int) -> tuple[int, ...]:
    given, enabled = reader.raw("layers", ""), reader.raw("is_enabled", False)
    if not isinstance(given, str) or not isinstance(enabled, bool):
        reader.problem(f"layers: expected block numbers as in '6,12', found {shown(given)}")
        return ()
    parts = [part.strip() for part in given.split(",") if part]
    if not all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
        reader.problem(f"layers: expected block numbers as in '6,12', found {shown(given)}")
        return ()
    # The code builds a memory for each block that is in the list: a number beyond the last does nothing.
    return tuple(sorted({int(part) for part in parts if int(part) < layers})) if enabled else ()


def _spec(decoder: DecoderSpec, memory: MetaMemory) -> ModelSpec:
    width = memory.value_dim or decoder.hidden_size
    table = TableSpec(memory.keys**2, width, decoder.hidden_size if memory.peer else 0)
    layers = tuple(
        MemoryLayerSpec(
            kind="memory_plus" if memory.gate else "pkm",
            read_block=block,
            write_block=block,
            heads=memory.heads,
            top_m=memory.knn,
            row_keys=memory.keys,
            col_keys=memory.keys,
            key_width=memory.key_dim // 2,
            table=memory.table(block),
            slots=memory.keys**2,
            scoring="additive",
            cores=1,
            query_heads=memory.heads,
            score_function="softmax",
            gate_activation="gelu" if memory.peer else "none",
            output_gate=memory.gate,
            token_gate=memory.gated,
        )
        for block in memory.blocks
    )
    if layers:
        widths = (0 if block in memory.blocks else decoder.intermediate_size for block in range(decoder.num_layers))
        decoder = replace(decoder, ffn_widths=tuple(widths))
    return ModelSpec(decoder, layers, {layer.table: table for layer in layers}, source_family=FAMILY)
