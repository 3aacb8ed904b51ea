"""What `upcycle --method neurons` can be told; apart from the calibration, so that `--help` needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from ultramem_deploy.errors import InputError
from ultramem_deploy.option_problems import Problem, below, refuse, unknown_choices
from ultramem_deploy.spec import ModelSpec

GATES = {"silu": "silu", "gelu": "gelu"}


@dataclass(frozen=True)
class NeuronOptions:
    """How many of a block's FFN neurons a token may use, and on how much text that is fitted and measured."""

    active: float = field(default=0.5, metadata={"help": "Neurons a token uses, as a fraction of the FFN's."})
    retrieve: float = field(
        default=1.5,
        metadata={"help": "Neurons retrieved for each that is used: of them the largest, computed exactly, are kept."},
    )
    shared: float = field(
        default=0.0, metadata={"help": "Fraction kept as a small dense FFN: the neurons that matter most on average."}
    )
    error_budget: float = field(
        default=0.0,
        metadata={
            "help": "Largest relative output error of a block: it then chooses the fraction, instead of --active."
        },
    )
    spread: str = field(
        default="even",
        metadata={
            "help": "even: the same in every block; error: blocks that lose more get more, --active on average.",
            "choices": ("even", "error"),
        },
    )
    calibration_tokens: int = field(default=4096, metadata={"help": "Tokens of the text that the keys are fitted on."})
    held_out_tokens: int = field(default=1024, metadata={"help": "Tokens of held-out text for the receipt."})

    def problems(self) -> Iterator[Problem]:
        """What no model can be given."""
        yield from unknown_choices(self)
        if not 0 < self.active <= 1:
            yield "active", f"expected a fraction above 0, at most 1, found {self.active}"
        if not 0 <= self.shared < self.active:
            yield "shared", f"expected a fraction below --active ({self.active}), found {self.shared}"
        if not 1 <= self.retrieve < math.inf:
            yield "retrieve", f"expected at least 1, found {self.retrieve}"
        if not 0 <= self.error_budget < 1:
            yield "error_budget", f"expected 0 (not used) to 1, found {self.error_budget}"
        yield from below(self, 2, "expected at least 2", "calibration_tokens", "held_out_tokens")


def check_neuron_options(spec: ModelSpec, options: NeuronOptions) -> None:
    """InputError for a model whose FFNs cannot become memories, or for an option outside its range."""
    d = spec.decoder
    if spec.memory:
        raise InputError(f"upcycle: the model already has {len(spec.memory)} memory layers; start from the dense one")
    if d.dense != "float":
        raise InputError(f"upcycle: --method neurons: the dense weights are {d.dense} codes; upcycle before `quantize`")
    if d.norm_position != "pre":
        raise InputError(
            "upcycle: --method neurons: the model norms its FFNs' outputs: a memory layer has no such norm"
        )
    if d.mlp_bias:
        raise InputError("upcycle: --method neurons: the model's FFNs have biases, for which a memory has no place")
    if d.activation not in GATES:
        raise InputError(
            f"upcycle: --method neurons: SparseGate computes {' and '.join(GATES)}, the model's activation is "
            f"{d.activation}"
        )
    if d.experts:
        raise InputError("upcycle: --method neurons: the model has mixtures of experts; it reads dense FFNs")
    if d.ffn_widths:
        raise InputError("upcycle: --method neurons: expected FFNs of one width; start from the dense model")
    refuse(options.problems())
