"""The description of a model: frozen dataclasses <-> `config.json`, validated with every problem listed at once.

Symbols in comments are those of the UltraMem papers: T tokens, d hidden size, H heads, R Tucker rank, M Tucker cores,
n keys a side, m values taken a head, K = H*m, N physical slots, E virtual blocks, D value width, P pre-value width.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from .checkpoint.header import label, shown
from .errors import ConfigError, InputError
from .spec_rules import model_problems as model_problems

MODEL_TYPE = "ultramem"
FORMAT_VERSION = 1

_STRICT = ConfigDict(extra="forbid", strict=True)

NormKind = Literal["rms", "layer"]
MemoryKind = Literal["ultramem_v1", "ultramem_v2", "memory_plus", "pkm"]
GateActivation = Literal["none", "gelu", "silu", "swiglu"]
FloatType = Literal["float32", "bfloat16", "float16"]
DenseStorage = Literal["float", "int8", "int4"]
TableStorage = Literal["float", "int8", "int4", "float8_e4m3"]


@dataclass(frozen=True)
class NormSpec:
    """RMSNorm or LayerNorm over the last axis; `affine` False means that it has no weight (OLMo)."""

    kind: NormKind
    eps: float
    affine: bool = True
    bias: bool = False
    unit_offset: bool = False

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions, rotating halves, or neighbours where `interleaved`.

    `scaling` other than "none" uses the fields below it: "llama3" its piecewise blend of frequencies, "yarn" the ramp
    between `beta_fast` and `beta_slow` rotations (arXiv 2309.00071), whose cosines and sines are multiplied by
    `attention_factor`.
    """

    theta: float
    scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True
    interleaved: bool = False

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class LatentSpec:
    """Multi-head latent attention (DeepSeek-V3): keys and values are expanded from `kv_rank` numbers a token.

    A head's query and key are `head_dim - rope_dim` plain entries, then `rope_dim` rotated ones; the rotated part of
    the key is shared by all heads. `query_rank` is None where queries are projected directly.
    """

    kv_rank: int
    rope_dim: int
    value_dim: int
    norm_eps: float
    query_rank: int | None = None

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class RoutingSpec:
    """How a token chooses `top_k` experts and weighs them.

    The router's scores pass a softmax or a sigmoid. Experts are chosen by score, plus a bias where `selection_bias`,
    from the `top_groups` of `groups` whose two best sum to most (DeepSeek-V3, 2.1.2). Weights are the scores, bias left
    out; `normalise` makes those kept sum to 1, `scale` multiplies them.
    """

    top_k: int
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    normalise: bool = False
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    selection_bias: bool = False

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class ExpertsSpec:
    """A mixture of experts that stands for the FFN of the blocks `layers`: `count` FFNs of `width` and their router.

    A dense FFN of `shared_width` runs beside them, behind a sigmoid gate where `shared_gate`; the blocks
    `shared_layers` have it alone.
    """

    layers: tuple[int, ...]
    count: int
    width: int
    routing: RoutingSpec
    shared_width: int = 0
    shared_gate: bool = False
    shared_layers: tuple[int, ...] = ()

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only transformer with gated FFNs. `vocab_size` counts embedding rows, hence logit columns.

    `sliding_rope` replaces `rope` in sliding layers; `attention_scale` replaces 1/sqrt(head_dim).
    `ffn_widths` gives each block's FFN width where they differ: 0 is a block without one, and without the norm behind
    it where norms stand after. Empty: `intermediate_size` everywhere.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm: NormSpec
    rope: RopeSpec
    norm_position: Literal["pre", "post", "both"] = "pre"
    qk_norm: Literal["none", "head", "projection"] = "none"
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    qkv_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    clip_qkv: float | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] = ()
    sliding_rope: RopeSpec | None = None
    attention_scale: float | None = None
    embedding_scale: float | None = None
    tie_embeddings: bool = False
    latent: LatentSpec | None = None
    experts: ExpertsSpec | None = None
    dense: DenseStorage = "float"
    ffn_widths: tuple[int, ...] = ()
    lm_head_bias: bool = False

    __pydantic_config__ = _STRICT

    @property
    def value_dim(self) -> int:
        """Width of one head's value."""
        return self.latent.value_dim if self.latent else self.head_dim

    @property
    def rotated_dim(self) -> int:
        """How many entries of a head's query and key carry the position."""
        return self.latent.rope_dim if self.latent else self.head_dim

    @property
    def score_scale(self) -> float:
        """What a query-key product is multiplied by."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def ffn_width(self, block: int) -> int:
        """Inner width of a block's dense FFN; 0 where it has none."""
        if self.has_experts(block):
            return 0
        return self.ffn_widths[block] if self.ffn_widths else self.intermediate_size

    def has_experts(self, block: int) -> bool:
        """Whether a mixture of experts, or what it shares, stands for this block's FFN."""
        return self.experts is not None and block in (*self.experts.layers, *self.experts.shared_layers)

    def has_ffn(self, block: int) -> bool:
        """Whether a block has an FFN, dense or a mixture."""
        return self.has_experts(block) or self.ffn_width(block) > 0


@dataclass(frozen=True)
class TableSpec:
    """A value table [rows, value_width] and, where pre_value_width > 0, a pre-value table [rows, pre_value_width].

    `storage` other than "float": codes and a float32 scale for every row that an operator addresses (storage.py).
    """

    rows: int
    value_width: int
    pre_value_width: int = 0
    storage: TableStorage = "float"

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class MemoryLayerSpec:
    """One memory layer: reads block `read_block`'s FFN input, adds its output after block `write_block`.

    `slots` is the layer's window of its table: row = (sigma mod slots + offset) mod table rows, block = sigma // slots,
    sigma = shuffle[virtual]. `expanded` marks a table whose rows are already projected (M*d numbers a virtual slot).
    With `routing` the hidden state itself meets the keys, without query and pre-query projections: rows are experts, a
    router (row_keys) chooses among them, column keys and biases add to the logarithm of a row's weight to choose
    within, and a slot weighs as its row does.
    Scoring "signed" reads the hidden state itself, without query and pre-query projections: slot n scores the magnitude
    of <key_n, hidden> and weighs its value by <key_n, hidden>. Rows are the two signs (virtual blocks 0 and 1) times
    `rank` parts of the slots, columns the slots of a part, so that top-m over the grid takes the largest magnitudes.
    Of the K values taken, only the `kept_values` whose weight after the gate is largest in magnitude are summed.
    A value whose sigma is `empty_slot` is chosen and counts as zero. `token_gate` multiplies the output by
    sigmoid(<w, hidden> + b), one number a token. With `rank_one_keys` stage 1 reads one key matrix a side, folded with
    u or v.
    """

    kind: MemoryKind
    read_block: int
    write_block: int
    heads: int
    top_m: int
    row_keys: int
    col_keys: int
    key_width: int
    table: str
    slots: int
    scoring: Literal["tucker", "additive", "signed"] = "tucker"
    rank: int = 2
    cores: int = 2
    routing: RoutingSpec | None = None
    query_heads: int = 1
    query_norm: NormSpec | None = None
    key_norm: NormSpec | None = None
    score_function: Literal["none", "softmax"] = "none"
    offset: int = 0
    blocks: int = 1
    sum_blocks: bool = False
    shuffle: bool = False
    gate_activation: GateActivation = "none"
    output_gate: bool = False
    expanded: bool = False
    empty_slot: int | None = None
    query_bias: bool = False
    output_bias: bool = False
    output_gate_bias: bool = False
    token_gate: bool = False
    rank_one_keys: bool = False
    kept_values: int | None = None

    __pydantic_config__ = _STRICT

    @property
    def virtual_slots(self) -> int:
        """Pairs of a row and a column key."""
        return self.row_keys * self.col_keys

    @property
    def taken(self) -> int:
        """K: values taken a token."""
        return self.heads * self.top_m

    @property
    def reads_hidden(self) -> bool:
        """Whether keys and pre-values meet the hidden state itself, without projections."""
        return self.routing is not None or self.scoring == "signed"

    @property
    def summed(self) -> int:
        """Values whose rows are read and summed a token."""
        return self.taken if self.kept_values is None else self.kept_values

    @property
    def key_rank(self) -> int:
        """R of the keys: how many vectors a key has."""
        return 1 if self.scoring == "additive" else self.rank

    @property
    def output_blocks(self) -> int:
        """Virtual blocks that stay apart until the output projection."""
        return 1 if self.sum_blocks else self.blocks

    @property
    def folded(self) -> bool:
        return self.expanded


@dataclass(frozen=True)
class TokenSpec:
    """Special token ids; several end-of-text ids are possible."""

    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class ModelSpec:
    """A whole model: what `config.json` of a canonical checkpoint holds."""

    decoder: DecoderSpec
    memory: tuple[MemoryLayerSpec, ...] = ()
    tables: dict[str, TableSpec] = field(default_factory=dict)
    tokens: TokenSpec = TokenSpec()
    source_family: str = ""

    __pydantic_config__ = _STRICT

    def to_config(self) -> dict[str, Any]:
        """The content of `config.json`."""
        head = {"model_type": MODEL_TYPE, "architectures": ["UltraMemForCausalLM"], "format_version": FORMAT_VERSION}
        body: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return head | body

    @classmethod
    def from_config(cls, config: dict[str, Any], where: str = "config.json") -> ModelSpec:
        """Parse and validate. Raises ConfigError with every problem found."""
        body = dict(config)
        problems = _head_problems(body)
        try:
            spec = _ADAPTER.validate_json(json.dumps(body))
        except ValidationError as error:
            raise ConfigError(where, problems + [_describe(e) for e in error.errors()]) from None
        except (RecursionError, TypeError, ValueError) as error:
            raise ConfigError(where, [*problems, f"cannot be read as JSON ({error})"]) from None
        problems += model_problems(spec)
        if problems:
            raise ConfigError(where, problems)
        return spec

    @classmethod
    def load(cls, directory: Path) -> ModelSpec:
        """Read `directory/config.json`. Raises InputError or ConfigError."""
        config = read_json(directory / "config.json")
        if config.get("model_type") != MODEL_TYPE:
            raise InputError(
                f"{directory}: not a canonical checkpoint (model_type {shown(config.get('model_type'))}, expected "
                f"{MODEL_TYPE!r}): run `ultramem-deploy convert` first"
            )
        return cls.from_config(config, f"{directory.name}/config.json")


_ADAPTER = TypeAdapter(ModelSpec)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError where it is missing or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a model directory with {path.name}") from None
    except NotADirectoryError:
        raise InputError(f"{path.parent}: expected a model directory with {path.name}, found a file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); the file is damaged, get it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _head_problems(body: dict[str, Any]) -> list[str]:
    problems = []
    model_type = body.pop("model_type", None)
    if model_type != MODEL_TYPE:
        problems.append(f"model_type: expected {MODEL_TYPE!r}, found {shown(model_type)}")
    body.pop("architectures", None)
    version = body.pop("format_version", None)
    if version != FORMAT_VERSION:
        problems.append(f"format_version: this version reads {FORMAT_VERSION}, found {shown(version)}")
    return problems


def _describe(error: Any) -> str:
    where = ".".join(map(label, error["loc"])) or "(root)"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{where}: unknown key"
    if error["type"] in ("missing", "missing_argument"):
        return f"{where}: missing"
    found = repr(error["input"])
    return f"{where}: {error['msg']}, found {found if len(found) <= 80 else found[:77] + '...'}"
