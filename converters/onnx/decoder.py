"""The decoder as a graph: blocks, memory layers between them, and the output projection (model/decoder.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnx import TensorProto

from ...layout import block_norms
from ...spec import DecoderSpec, ModelSpec, NormSpec
from .attention import Inputs, declare_cache, linear, stored_codes
from .attention_latent import Latent
from .attention_ort import GroupQuery
from .attention_portable import Standard
from .dialect import Portable
from .ffn import gated_ffn, mixture
from .memory import MemoryGraph
from .weights import grouped


@dataclass
class Residual:
    """The residual stream: a value, and an addend that waits to be fused into the next norm."""

    dialect: Portable
    value: str
    waiting: str | None = None

    def add(self, delta: str) -> None:
        self.settle()
        self.waiting = delta

    def settle(self) -> str:
        if self.waiting is not None:
            self.value = self.dialect.graph.op("Add", self.value, self.waiting)
            self.waiting = None
        return self.value

    def normed(self, spec: NormSpec, name: str, width: int) -> str:
        if self.waiting is None:
            return self.dialect.norm(self.value, spec, name, width)
        normed, self.value = self.dialect.add_norm(self.value, self.waiting, spec, name, width)
        self.waiting = None
        return normed


class DecoderGraph:
    """Builds the whole model into the dialect's graph."""

    def __init__(self, dialect: Portable, spec: ModelSpec) -> None:
        self.dialect, self.graph, self.spec, self.decoder = dialect, dialect.graph, spec, spec.decoder
        self.inputs = Inputs(self.graph, spec.decoder)
        self.packs_cache = dialect.target == "ort" and grouped(spec.decoder)
        kind = Latent if spec.decoder.latent else GroupQuery if self.packs_cache else Standard
        self.attention: Callable[[int, str], str] = kind(dialect, self.inputs)

    def build(self) -> None:
        """Add inputs, nodes and outputs: input_ids, attention_mask and caches in, logits and caches out."""
        g = self.graph
        g.add_input(self.inputs.input_ids, TensorProto.INT64, ["batch_size", "sequence_length"])
        g.add_input(self.inputs.attention_mask, TensorProto.INT64, ["batch_size", "total_sequence_length"])
        g.add_output("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", self.decoder.vocab_size])
        declare_cache(self.inputs)
        stream = Residual(self.dialect, self._embedded())
        for index in range(self.decoder.num_layers):
            with g.scope(f"layers.{index}"):
                ffn_input = self._block(index, stream)
            self._remember(index, ffn_input, stream)
        self._head(stream)

    def _embedded(self) -> str:
        name = "model.embed_tokens.weight"
        g, scale = self.graph, self.decoder.embedding_scale
        rows = self.dialect.embed(g.stored(name), self.inputs.input_ids)
        rows = rows if g.dtype(name) == "float32" else g.cast(rows, TensorProto.FLOAT)
        return rows if scale is None else g.op("Mul", rows, g.constant(scale, "float32"))

    def _block(self, index: int, stream: Residual) -> str:
        """Run one block on the stream; returns what its FFN reads, or would read."""
        norms = block_norms(self.decoder, index)
        attended = self._attend(index, self._before(index, norms.attention_input, stream))
        stream.add(self._after(index, norms.attention_output, attended))
        ffn_input = self._before(index, norms.ffn_input, stream)
        if self.decoder.has_ffn(index):
            stream.add(self._after(index, norms.ffn_output, self._ffn(index, ffn_input)))
        return ffn_input

    def _before(self, index: int, norm: str | None, stream: Residual) -> str:
        """The stream, normed where there is a norm."""
        d = self.decoder
        return stream.normed(d.norm, f"model.layers.{index}.{norm}", d.hidden_size) if norm else stream.settle()

    def _after(self, index: int, norm: str | None, x: str) -> str:
        d = self.decoder
        return self.dialect.norm(x, d.norm, f"model.layers.{index}.{norm}", d.hidden_size) if norm else x

    def _attend(self, index: int, x: str) -> str:
        with self.graph.scope("attention"):
            heads = self.attention(index, x)
            name = f"model.layers.{index}.self_attn.o_proj"
            return linear(self.dialect, heads, name, self.decoder.attention_output_bias)

    def _ffn(self, index: int, x: str) -> str:
        d, prefix = self.decoder, f"model.layers.{index}.mlp"
        with self.graph.scope("mlp"):
            if d.experts and d.has_experts(index):
                return mixture(self.dialect, d, d.experts, prefix, x, index in d.experts.layers)
            return gated_ffn(self.dialect, d, prefix, x)

    def _remember(self, block: int, ffn_input: str, stream: Residual) -> None:
        """Start the memory layers that read `block`, and add those that write after it."""
        for number, layer in enumerate(self.spec.memory):
            if layer.read_block == block:
                with self.graph.scope(f"memory.{number}"):
                    MemoryGraph(self.dialect, self.spec, number)(self.dialect.flat(ffn_input))
            if layer.write_block == block:
                stream.add(self.dialect.unflat(f"memory.{number}.output", stream.settle()))

    def _head(self, stream: Residual) -> None:
        d: DecoderSpec = self.decoder
        g = self.graph
        x = stream.normed(d.norm, "model.norm", d.hidden_size)
        if d.dense != "float":
            added = g.weight("lm_head.bias") if d.lm_head_bias else None
            self.dialect.linear_codes(x, *stored_codes(g, ["lm_head"]), added, out="logits")
            return
        weight = g.weight("model.embed_tokens.weight" if d.tie_embeddings else "lm_head.weight")
        bias = g.weight("lm_head.bias") if d.lm_head_bias else None
        self.dialect.head(x, weight, bias, lambda: self.inputs.shape(d.vocab_size), "logits")
