"""GGUF files of the llama architecture, dequantised to float32 tensor by tensor; llama.cpp's q/k order is undone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.errors import InputError
from ultramem_deploy.layout import decoder_shapes
from ultramem_deploy.spec import DecoderSpec, ModelSpec, NormSpec, RopeSpec, model_problems

from .base import Importer, ImportPlan, Source, SourceTensor
from .config_reader import ConfigReader, Key
from .gguf_file import INSTALL, GGUFFile, GGUFTensor
from .gguf_rope import scaling_of
from .huggingface import MAX_LAYERS
from .matching import NameMap, match_tensors
from .tokens import read_tokens

_ARCHITECTURE = "llama"
_ROPE_DIVISORS = "rope_freqs.weight"
_KEYS = {
    "llama.embedding_length": Key(("hidden_size",)),
    "llama.feed_forward_length": Key(("intermediate_size",)),
    "llama.block_count": Key(("num_layers",), maximum=MAX_LAYERS),
    "llama.attention.head_count": Key(("num_heads",)),
    "llama.attention.head_count_kv": Key(("num_kv_heads",), default=None),
    "llama.attention.key_length": Key(("head_dim",), default=None),
    "llama.attention.layer_norm_rms_epsilon": Key(("norm_eps",), float),
    "llama.context_length": Key(("max_positions",)),
    "llama.vocab_size": Key(("vocab_size",), default=None),
}
_FIXED = {
    "llama.expert_count": (0,),
    "llama.expert_used_count": (0,),
    "llama.use_parallel_residual": (False,),
    "llama.attention.causal": (True,),
}
_IGNORED = frozenset(
    {"llama.tensor_data_layout", "llama.rope.scaling.finetuned", "llama.rope.scaling.original_context_length"}
)
_BLOCK_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
NAMES = NameMap(
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("lm_head.weight", "output.weight"),
        *(
            (f"model.layers.{{i}}.{ours}.{part}", f"blk.{{i}}.{theirs}.{part}")
            for ours, theirs in _BLOCK_NAMES.items()
            for part in ("weight", "bias")
        ),
    ]
)


class GGUFImporter(Importer):
    """Biases, tied embeddings and vocabulary size follow the tensors: the format has no metadata for them."""

    family = "gguf"
    recognises = ("llama architecture",)
    reads_gguf = True

    def detect(self, source: Source) -> bool:
        return source.gguf is not None

    def plan(self, source: Source) -> ImportPlan:
        if source.gguf is None:
            raise InputError(f"{source.path}: holds no .gguf file, which family gguf reads")
        file = GGUFFile(source.gguf)
        architecture = file.get("general.architecture")
        if architecture != _ARCHITECTURE:
            raise InputError(
                f"{file.path}: general.architecture {shown(architecture)} is not supported, expected {_ARCHITECTURE!r};"
                " import the model's own Hugging Face checkpoint instead"
            )
        reader = ConfigReader({key: file.get(key) for key in file.keys if key.startswith("llama.")}, str(file.path))
        spec = _spec(reader, file)
        held = {name: tensor.shape for name, tensor in file.tensors.items()}
        pairs = match_tensors(str(file.path), decoder_shapes(spec.decoder), held, NAMES, [r"rope_freqs\.weight"])
        tensors = {ours: _source_tensor(ours, file.tensors[theirs], spec.decoder) for ours, theirs in pairs.items()}
        return ImportPlan(self.family, spec, tensors, reader.warnings, [], _tokenizer_writer(reader, file))


def _spec(reader: ConfigReader, file: GGUFFile) -> ModelSpec:
    decoder = _decoder(reader, file)
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    ids = {ours: file.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in names.items()}
    end_of_turn = file.get("tokenizer.ggml.eot_token_id")
    if end_of_turn is not None:
        ids["eos_token_id"] = [item for item in (ids["eos_token_id"], end_of_turn) if item is not None]
    tokens = read_tokens(reader, ids, decoder.vocab_size)
    reader.fixed(_FIXED)
    spec = ModelSpec(decoder, tokens=tokens, source_family="gguf")
    derived = [] if reader.failed else model_problems(spec)
    reader.finish(_IGNORED, derived)
    return spec


def _decoder(reader: ConfigReader, file: GGUFFile) -> DecoderSpec:
    fields = reader.fields(_KEYS)
    embedding = file.tensors.get("token_embd.weight")
    fields["norm"] = NormSpec("rms", fields.pop("norm_eps"))
    fields["num_kv_heads"] = fields["num_kv_heads"] or fields["num_heads"]
    fields["head_dim"] = fields["head_dim"] or max(1, fields["hidden_size"] // fields["num_heads"])
    fields["vocab_size"] = fields["vocab_size"] or (embedding.shape[0] if embedding and embedding.shape else 1)
    for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
        reader.fixed({key: (fields["head_dim"],)})
    return DecoderSpec(
        **fields,
        rope=_rope(reader, file, fields["head_dim"]),
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        attention_output_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in file.tensors,
        tie_embeddings="output.weight" not in file.tensors,
    )


def _rope(reader: ConfigReader, file: GGUFFile, head_dim: int) -> RopeSpec:
    theta = reader.number("llama.rope.freq_base", Key((), float, 10000.0))
    kind = reader.raw("llama.rope.scaling.type", "none")
    factor = reader.number("llama.rope.scaling.factor", Key((), float, 1.0))
    if kind not in ("none", "linear"):
        reader.problem(f"llama.rope.scaling.type: expected none or linear, found {shown(kind)}")
    linear = RopeSpec(theta, "linear", factor) if kind == "linear" and factor != 1.0 else RopeSpec(theta)
    divisors = file.tensors.get(_ROPE_DIVISORS)
    if divisors is None:
        return linear
    scaled = scaling_of(divisors.rows(slice(None)), theta, head_dim) if linear == RopeSpec(theta) else None
    if scaled is None:
        reader.problem(f"tensor {_ROPE_DIVISORS}: matches no rotary scaling that Llama 3 models were published with")
    return scaled or linear


def _source_tensor(name: str, tensor: GGUFTensor, decoder: DecoderSpec) -> SourceTensor:
    heads = {"q_proj": decoder.num_heads, "k_proj": decoder.num_kv_heads}.get(name.split(".")[-2])
    order = None if heads is None else unpermuted(heads, tensor.shape[0])
    return SourceTensor(tensor.name, tensor.shape, "float32", partial(_rows, tensor, order))


def _rows(tensor: GGUFTensor, order: np.ndarray[Any, Any] | None, start: int, stop: int) -> np.ndarray[Any, Any]:
    return tensor.rows(slice(start, stop) if order is None else order[start:stop])


def unpermuted(heads: int, rows: int) -> np.ndarray[Any, Any]:
    """Row j of the Hugging Face projection is row order[j] of llama.cpp's, which interleaves each head's two halves."""
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _tokenizer_writer(reader: ConfigReader, file: GGUFFile) -> Any:
    if "tokenizer.ggml.model" not in file.keys:
        reader.warnings.append("the file holds no tokenizer; put one beside the converted model")
        return None
    return partial(_write_tokenizer, file.path)


def _write_tokenizer(path: Path, target: Path) -> None:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise InputError(f"{path}: reading its tokenizer needs transformers; {INSTALL}") from None
    try:
        AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(str(target))
    except Exception as error:  # transformers raises whatever its parsers do
        raise InputError(f"{path}: transformers cannot read its tokenizer ({shown(str(error))})") from None
