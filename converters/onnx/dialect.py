"""How each target spells a linear layer, a norm and an activation, and how hidden states are laid out.

`Portable` uses standard operators of opset 18 alone and keeps hidden states flat, [T, d], for Gemm. `Ort` uses the
com.microsoft operators that ONNX Runtime's CPU provider runs faster and keeps them [B, S, d], as those want them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...errors import InputError
from ...spec import NormSpec
from ...storage import DENSE_BLOCK
from .graph import Graph

MICROSOFT = "com.microsoft"
INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy_level: activations are rounded to int8, block by block. It is the fast form: with float
activations int4 takes twice as long at batch 1, and int8 weights hundreds of times (ONNX Runtime 1.31, x86-64)."""


class Portable:
    """Standard operators only; hidden states are [T, d], T = B*S."""

    target = "portable"

    def __init__(self, graph: Graph, hidden_size: int) -> None:
        self.graph, self.hidden_size = graph, hidden_size

    def linear(self, x: str, weight: str, bias: str | None = None) -> str:
        """x [T, in] times the transpose of weight [out, in]."""
        return self.graph.op("Gemm", x, weight, *([bias] if bias else []), transB=1)

    def linear_codes(
        self, x: str, codes: str, scales: str, shape: tuple[int, int, int], bias: str | None, out: str | None = None
    ) -> str:
        """x [T, in] times the transpose of a quantised weight: codes of `shape` [out, blocks, bytes], and scales."""
        raise InputError(
            "--target portable: quantised dense weights are multiplied by ONNX Runtime's MatMulNBits: choose --target "
            "ort, or quantize the tables alone"
        )

    def head(self, x: str, weight: str, bias: str | None, shape: Callable[[], str], out: str) -> None:
        """A hidden state times the transpose of weight [V, d], as the graph output `out` of `shape()` [B, S, V]."""
        self.graph.op("Reshape", self.linear(x, weight, bias), shape(), out=out)

    def matmul_transposed(self, x: str, y: str) -> str:
        """x [H, T, k] times the transpose of y [H, n, k], head by head."""
        return self.graph.op("MatMul", x, self.graph.op("Transpose", y, perm=[0, 2, 1]))

    def norm(self, x: str, spec: NormSpec, name: str, width: int) -> str:
        """The norm `name` (its weight and bias are checkpoint tensors) over the last axis of `width`."""
        if spec.kind == "layer":
            weight, bias = self._weight(spec, name, width), self._bias(spec, name)
            inputs = [x, weight, *([bias] if bias else [])]
            return self.graph.op("LayerNormalization", *inputs, axis=-1, epsilon=spec.eps)
        return self._rms(x, spec, name, width)

    def add_norm(self, x: str, delta: str, spec: NormSpec, name: str, width: int) -> tuple[str, str]:
        """The norm of x + delta, and x + delta."""
        total = self.graph.op("Add", x, delta)
        return self.norm(total, spec, name, width), total

    def activation(self, x: str, kind: str) -> str:
        """silu, gelu (erf) or gelu_tanh."""
        if kind == "silu":
            return self.graph.op("Mul", x, self.graph.op("Sigmoid", x))
        return self._gelu_tanh(x) if kind == "gelu_tanh" else self._gelu(x)

    def embed(self, table: str, input_ids: str) -> str:
        return self.graph.op("Gather", table, self.graph.reshape(input_ids, -1), axis=0)

    def flat(self, x: str) -> str:
        """A hidden state as [T, d]."""
        return x

    def unflat(self, x: str, like: str) -> str:
        """[T, d] as a hidden state laid out like `like`."""
        return x

    def _weight(self, spec: NormSpec, name: str, width: int) -> str:
        if spec.affine:
            weight = self.graph.weight(f"{name}.weight")
            return self.graph.op("Add", weight, self.graph.constant(1.0, "float32")) if spec.unit_offset else weight
        return self.graph.constant(np.ones(width), "float32")

    def _bias(self, spec: NormSpec, name: str) -> str | None:
        return self.graph.weight(f"{name}.bias") if spec.affine and spec.bias else None

    def _rms(self, x: str, spec: NormSpec, name: str, width: int) -> str:
        g = self.graph
        square = g.op("Pow", x, g.constant(2.0, "float32"))
        mean = g.op("ReduceMean", square, g.constant([-1]), keepdims=1)
        root = g.op("Sqrt", g.op("Add", mean, g.constant(spec.eps, "float32")))
        y = g.op("Div", x, root)
        if spec.affine:
            y = g.op("Mul", y, self._weight(spec, name, width))
        bias = self._bias(spec, name)
        return g.op("Add", y, bias) if bias else y

    def _gelu(self, x: str) -> str:
        g = self.graph
        erf = g.op("Erf", g.op("Div", x, g.constant(np.sqrt(2.0), "float32")))
        return g.op("Mul", g.op("Mul", x, g.op("Add", erf, g.constant(1.0, "float32"))), g.constant(0.5, "float32"))

    def _gelu_tanh(self, x: str) -> str:
        g = self.graph
        cube = g.op("Mul", g.op("Mul", g.op("Mul", x, x), x), g.constant(0.044715, "float32"))
        inner = g.op("Mul", g.op("Add", x, cube), g.constant(np.sqrt(2.0 / np.pi), "float32"))
        gate = g.op("Add", g.op("Tanh", inner), g.constant(1.0, "float32"))
        return g.op("Mul", g.op("Mul", x, gate), g.constant(0.5, "float32"))


class Ort(Portable):
    """com.microsoft operators where they are faster on CPU; hidden states are [B, S, d]."""

    target = "ort"

    def linear(self, x: str, weight: str, bias: str | None = None) -> str:
        y = self.graph.op(f"{MICROSOFT}::FusedMatMul", x, weight, transB=1)
        return self.graph.op("Add", y, bias) if bias else y

    def linear_codes(
        self, x: str, codes: str, scales: str, shape: tuple[int, int, int], bias: str | None, out: str | None = None
    ) -> str:
        y = self.graph.op(
            f"{MICROSOFT}::MatMulNBits",
            x,
            codes,
            scales,
            out=None if bias else out,
            N=shape[0],
            K=shape[1] * DENSE_BLOCK,
            bits=shape[2] * 8 // DENSE_BLOCK,
            block_size=DENSE_BLOCK,
            accuracy_level=INT8_ACTIVATIONS,
        )
        return self.graph.op("Add", y, bias, out=out) if bias else y

    def head(self, x: str, weight: str, bias: str | None, shape: Callable[[], str], out: str) -> None:
        # [B, S, V] already: a Reshape into a graph output would copy the logits.
        y = self.graph.op(f"{MICROSOFT}::FusedMatMul", x, weight, transB=1, out=None if bias else out)
        if bias:
            self.graph.op("Add", y, bias, out=out)

    def matmul_transposed(self, x: str, y: str) -> str:
        return self.graph.op(f"{MICROSOFT}::FusedMatMul", x, y, transB=1)

    def add_norm(self, x: str, delta: str, spec: NormSpec, name: str, width: int) -> tuple[str, str]:
        weight, bias = self._weight(spec, name, width), self._bias(spec, name)
        if spec.kind == "layer":
            inputs = [x, delta, weight, *([bias] if bias else [])]
            y, _, _, total = self.graph.ops(f"{MICROSOFT}::SkipLayerNormalization", 4, *inputs, epsilon=spec.eps)
            return y, total
        kind = f"{MICROSOFT}::SkipSimplifiedLayerNormalization"
        y, _, _, total = self.graph.ops(kind, 4, x, delta, weight, epsilon=spec.eps)
        return (self.graph.op("Add", y, bias) if bias else y), total

    def activation(self, x: str, kind: str) -> str:
        if kind == "silu":
            return self.graph.op(f"{MICROSOFT}::QuickGelu", x, alpha=1.0)
        return self.graph.op(f"{MICROSOFT}::{'FastGelu' if kind == 'gelu_tanh' else 'Gelu'}", x)

    def embed(self, table: str, input_ids: str) -> str:
        return self.graph.op("Gather", table, input_ids, axis=0)

    def flat(self, x: str) -> str:
        return self.graph.reshape(x, -1, self.hidden_size)

    def unflat(self, x: str, like: str) -> str:
        return self.graph.op("Reshape", x, self.graph.op("Shape", like))


DIALECTS: dict[str, type[Portable]] = {"ort": Ort, "portable": Portable}
