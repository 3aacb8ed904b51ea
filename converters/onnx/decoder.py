"""The decoder as a graph: blocks, memory layers between them, and the output projection (model/decoder.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnx import TensorProto

from ...layout import block_norm_names
from ...spec import DecoderSpec, ModelSpec, NormSpec
from .attention import Inputs, declare_cache, linear
from .attention_ort import GroupQuery
from .attention_portable import Standard
from .dialect import Portable
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
        self.attention: Callable[[int, str], str] = (GroupQuery if self.packs_cache else Standard)(dialect, self.inputs)

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
        rows = self.dialect.embed(self.graph.stored(name), self.inputs.input_ids)
        return rows if self.graph.dtype(name) == "float32" else self.graph.cast(rows, TensorProto.FLOAT)

    def _block(self, index: int, stream: Residual) -> str:
        """Run one block on the stream; returns what its FFN reads, or would read."""
        d, prefix = self.decoder, f"model.layers.{index}"
        width = d.ffn_width(index)
        attention_norm, mlp_norm = (f"{prefix}.{name}" for name in block_norm_names(d))
        if d.norm_position == "pre":
            stream.add(self._attend(index, stream.normed(d.norm, attention_norm, d.hidden_size)))
            ffn_input = stream.normed(d.norm, mlp_norm, d.hidden_size)
            if width:
                stream.add(self._mlp(prefix, ffn_input))
            return ffn_input
        attended = self._attend(index, stream.settle())
        stream.add(self.dialect.norm(attended, d.norm, attention_norm, d.hidden_size))
        ffn_input = stream.settle()
        if width:
            stream.add(self.dialect.norm(self._mlp(prefix, ffn_input), d.norm, mlp_norm, d.hidden_size))
        return ffn_input

    def _attend(self, index: int, x: str) -> str:
        with self.graph.scope("attention"):
            heads = self.attention(index, x)
            name = f"model.layers.{index}.self_attn.o_proj"
            return linear(self.dialect, heads, name, self.decoder.attention_output_bias)

    def _mlp(self, prefix: str, x: str) -> str:
        d, g = self.decoder, self.graph
        with g.scope("mlp"):
            gate, up = (linear(self.dialect, x, f"{prefix}.mlp.{part}_proj", d.mlp_bias) for part in ("gate", "up"))
            inner = g.op("Mul", self.dialect.activation(gate, d.activation), up)
            return linear(self.dialect, inner, f"{prefix}.mlp.down_proj", d.mlp_bias)

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
        weight = g.weight("model.embed_tokens.weight" if d.tie_embeddings else "lm_head.weight")
        bias = g.weight("lm_head.bias") if d.lm_head_bias else None
        self.dialect.head(x, weight, bias, lambda: self.inputs.shape(d.vocab_size), "logits")
