"""Canonical checkpoints in Hugging Face transformers: importing this module registers configuration and model.

    import ultramem_deploy.hf
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("healed")

`save_pretrained` writes a canonical checkpoint again, which every verb of this package reads. Needs the extra `hf`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME
from transformers.utils.hub import cached_file

from .checkpoint import Checkpoint
from .errors import InputError
from .model import UltraMemModel
from .model.cache import KVCache
from .model.memory import MemoryLayer, ValueTable
from .model.norms import Norm
from .spec import MODEL_TYPE, ModelSpec

_EMBEDDING = "model.embed_tokens.weight"
_WHERE = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
_SPEC_KEYS = ("decoder", "memory", "tables", "tokens", "source_family", "format_version")


class UltraMemConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """`config.json` of a canonical checkpoint; `spec` is what it describes.

    Raises ConfigError for a description that is not valid, InputError for one of a quantised model.
    """

    model_type = MODEL_TYPE

    def __init__(self, **kwargs: Any) -> None:
        described = {key: kwargs.pop(key) for key in _SPEC_KEYS if key in kwargs}
        kwargs.pop("model_type", None)
        self._spec = _trainable(described) if described else None
        super().__init__(**kwargs)

    @property
    def spec(self) -> ModelSpec:
        """The model's description."""
        if self._spec is None:
            raise InputError(
                "UltraMemConfig: describes no model: get one with UltraMemConfig.from_pretrained(directory)"
            )
        return self._spec

    @property
    def vocab_size(self) -> int:
        """Embedding rows; settable, so that `resize_token_embeddings` works."""
        return self.spec.decoder.vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self._spec = replace(self.spec, decoder=replace(self.spec.decoder, vocab_size=value))

    hidden_size = property(lambda self: self.spec.decoder.hidden_size)
    intermediate_size = property(lambda self: self.spec.decoder.intermediate_size)
    num_hidden_layers = property(lambda self: self.spec.decoder.num_layers)
    num_attention_heads = property(lambda self: self.spec.decoder.num_heads)
    num_key_value_heads = property(lambda self: self.spec.decoder.num_kv_heads)
    head_dim = property(lambda self: self.spec.decoder.head_dim)
    max_position_embeddings = property(lambda self: self.spec.decoder.max_positions)
    tie_word_embeddings = property(lambda self: self.spec.decoder.tie_embeddings)
    bos_token_id = property(lambda self: self.spec.tokens.bos)
    pad_token_id = property(lambda self: self.spec.tokens.pad)
    eos_token_id = property(lambda self: list(self.spec.tokens.eos) or None)

    def to_dict(self) -> dict[str, Any]:
        """The canonical `config.json` and nothing else: what this package reads is strict."""
        return self._spec.to_config() if self._spec else {"model_type": MODEL_TYPE}

    def to_diff_dict(self) -> dict[str, Any]:
        """As `to_dict`: a canonical configuration has no defaults to leave out."""
        return self.to_dict()


def _dense_dtype(path: Path) -> torch.dtype:
    known = Checkpoint.open(path).info(_EMBEDDING).dtype if path.is_dir() else "float32"
    dtype: torch.dtype = getattr(torch, known)
    return dtype


def _trainable(described: dict[str, Any]) -> ModelSpec:
    spec = ModelSpec.from_config({"model_type": MODEL_TYPE, **described})
    codes = [f"table {name!r} ({table.storage})" for name, table in spec.tables.items() if table.storage != "float"]
    codes += [f"dense weights ({spec.decoder.dense})"] if spec.decoder.dense != "float" else []
    if codes:
        raise InputError(f"{', '.join(codes)}: transformers gets models from before `quantize`, not quantised ones")
    return spec


class UltraMemForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """`UltraMemModel` as transformers wants it; tensors are named as in the canonical checkpoint."""

    config_class = UltraMemConfig
    config: UltraMemConfig
    base_model_prefix = "model"
    _no_split_modules = ["Block", "MemoryLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _trained = False

    def __init__(self, config: UltraMemConfig) -> None:
        super().__init__(config)
        for name, module in UltraMemModel(config.spec).named_children():
            self.add_module(name, module)
        self.post_init()  # type: ignore[no-untyped-call]
        self._name_tokens()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, path: str | os.PathLike[str], *arguments: Any, config: Any = None, **options: Any
    ) -> Any:
        """As any model's, but for three things: a checkpoint's index comes before a shard that is called
        `model.safetensors`; dtype "auto" is that of the dense weights (float32 of a checkpoint that is not here yet);
        and a tensor that is missing is an InputError, not a random one."""
        if not isinstance(config, UltraMemConfig):
            config, options = UltraMemConfig.from_pretrained(config or path, return_unused_kwargs=True, **options)
        told = {key: options[key] for key in _WHERE if key in options}
        if cached_file(path, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **told):
            config.transformers_weights = SAFE_WEIGHTS_INDEX_NAME
        if options.get("dtype", "auto") == "auto":
            options["dtype"] = _dense_dtype(Path(path, options.get("subfolder", "")))
        wants_info = options.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(path, *arguments, config=config, output_loading_info=True, **options)
        model, info = loaded
        missing = sorted(map(str, info["missing_keys"]))
        if missing:
            raise InputError(
                f"{path}: tensor {missing[0]} ({len(missing)} in all) is missing: get the checkpoint again"
            )
        return (model, info) if wants_info else model

    def _network(self) -> UltraMemModel:
        """The decoder over the modules as they are now: adapters and resized embeddings take the place of some."""
        network = UltraMemModel.__new__(UltraMemModel)
        nn.Module.__init__(network)
        network.spec = self.config.spec
        for name, module in self.named_children():
            network.add_module(name, module)
        return network

    def train(self, mode: bool = True) -> UltraMemForCausalLM:
        """As any module's; whoever stops training gets u and v of the cores as they are then."""
        if not mode:
            self._follow_cores()
        super().train(mode)
        return self

    def save_pretrained(self, *arguments: Any, **options: Any) -> None:
        """As any model's; u and v of a model in training are those of its cores."""
        self._follow_cores()
        super().save_pretrained(*arguments, **options)

    def _follow_cores(self) -> None:
        """Bring u and v up to date where an optimizer may have moved the cores since the last forward pass."""
        for layer in self._network().memory_layers if self._trained else ():
            if layer.spec.scoring == "tucker" and layer.core.requires_grad:
                layer.follow_core()

    def _name_tokens(self) -> None:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(self.generation_config, name) is None:
                setattr(self.generation_config, name, getattr(self.config, name))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, S, V] of input_ids [B, S], and the mean loss of the next token where `labels` [B, S] are given.

        A label of -100 does not count. Positions follow from `attention_mask` ([B, S], 0 for padding).
        Raises InputError for what this model does not take: embeddings in place of ids, and masks of static caches.
        """
        if input_ids is None:
            raise InputError("input_ids: expected int64 [B, S], found none: embeddings are not taken in their place")
        if attention_mask is not None and attention_mask.ndim != 2:
            found = list(attention_mask.shape)
            raise InputError(f"attention_mask: expected [B, S], found {found}: leave cache_implementation out")
        network = self._network()
        if self.training:
            self._trained = True
            self._follow_cores()
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        cache = _Cache(past_key_values) if past_key_values is not None else None
        logits = network(input_ids, attention_mask, cache, 0 if labels is not None else logits_to_keep)
        loss = None if labels is None else _loss(logits, labels, num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Random weights, for a model that is made from a configuration; what is loaded is not touched."""
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, Norm):
            for name, parameter in module.named_parameters(recurse=False):
                (init.zeros_ if name == "bias" else init.ones_)(parameter)
        elif isinstance(module, MemoryLayer | ValueTable):
            for parameter in module.parameters(recurse=False):
                init.normal_(parameter, mean=0.0, std=0.02)
            if isinstance(module, MemoryLayer):
                _init_buffers(module)


def _init_buffers(layer: MemoryLayer) -> None:
    if layer.spec.shuffle:
        init.copy_(layer.shuffle, torch.randperm(layer.spec.virtual_slots, device=layer.shuffle.device))
    if layer.spec.scoring == "tucker":
        left, _, right = torch.linalg.svd(layer.core.float().sum(0))
        init.copy_(layer.u, left[..., 0])
        init.copy_(layer.v, right[..., 0, :])


class _Cache(KVCache):
    """transformers' cache behind the interface of ours."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self.length = cache.get_seq_length()

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add [B, kv_heads, S, head_dim]; returns everything held."""
        held: tuple[torch.Tensor, torch.Tensor] = self._cache.update(keys, values, layer)
        return held

    def buffers(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tensors themselves: what lies behind them is transformers' own."""
        return keys, values


def _loss(logits: torch.Tensor, labels: torch.Tensor, count: torch.Tensor | int | None) -> torch.Tensor:
    """Cross-entropy of the next token, float32: the mean, or the sum over `count` labels of an accumulated batch."""
    wanted = labels[:, 1:].flatten().to(logits.device)
    found = logits[:, :-1].flatten(0, 1).float()
    if count is None:
        return F.cross_entropy(found, wanted)
    return F.cross_entropy(found, wanted, reduction="sum") / count


AutoConfig.register(MODEL_TYPE, UltraMemConfig, exist_ok=True)
AutoModelForCausalLM.register(UltraMemConfig, UltraMemForCausalLM, exist_ok=True)
AutoTokenizer.register(UltraMemConfig, fast_tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)  # type: ignore[no-untyped-call]
