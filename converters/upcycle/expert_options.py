"""What `upcycle --method experts` can be told; apart from the calibration, so that `--help` needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ultramem_deploy.errors import InputError
from ultramem_deploy.option_problems import Problem, below, refuse, unknown_choices
from ultramem_deploy.spec import DecoderSpec, ExpertsSpec, ModelSpec


@dataclass(frozen=True)
class ExpertOptions:
    """How many of its experts' neurons a token may use, and on how much text columns are fitted and measured."""

    active: float = field(default=1.0, metadata={"help": "Neurons a token uses, as a fraction of its experts'."})
    columns: str = field(
        default="fitted",
        metadata={
            "help": "How neurons share columns: fitted to what they do, popular (by mean activity), random.",
            "choices": ("fitted", "popular", "random"),
        },
    )
    calibration_tokens: int = field(default=8192, metadata={"help": "Tokens of the text that columns are fitted on."})
    held_out_tokens: int = field(default=2048, metadata={"help": "Tokens of held-out text for the receipt."})
    seed: int = field(default=0, metadata={"help": "Seed of random columns."})

    def problems(self) -> Iterator[Problem]:
        """What no model can be given."""
        yield from unknown_choices(self)
        if not 0 < self.active <= 1:
            yield "active", f"expected a fraction above 0, at most 1, found {self.active}"
        yield from below(self, 2, "expected at least 2", "calibration_tokens", "held_out_tokens")
        yield from below(self, 0, "must not be negative", "seed")


def check_expert_options(spec: ModelSpec, options: ExpertOptions) -> ExpertsSpec:
    """The model's experts. InputError where they cannot become memories, or for an option outside its range."""
    d, experts = spec.decoder, spec.decoder.experts
    where = "upcycle: --method experts:"
    if spec.memory:
        raise InputError(f"{where} the model already has {len(spec.memory)} memory layers; start from its source")
    if experts is None or not experts.layers:
        raise InputError(f"{where} the model has no mixture of experts; --method neurons takes dense FFNs")
    if d.norm_position != "pre":
        raise InputError(f"{where} the model norms its experts' outputs: a memory layer has no such norm")
    if d.mlp_bias or d.activation != "silu":
        raise InputError(f"{where} expected silu experts without biases, found {d.activation}, biases {d.mlp_bias}")
    refuse(options.problems())
    if slots_taken(experts, options.active) < experts.count:
        least = experts.count / (experts.routing.top_k * experts.width)
        raise InputError(
            f"--active: {options.active} leaves {slots_taken(experts, options.active)} neurons a token, fewer than the "
            f"{experts.count} experts; expected at least {least:.3g}"
        )
    return experts


def slots_taken(experts: ExpertsSpec, active: float) -> int:
    """top-m: neurons a token uses."""
    return round(active * experts.routing.top_k * experts.width)


def source_tensors(decoder: DecoderSpec, block: int) -> list[str]:
    """Names of the router's and the experts' tensors of a block, which the memory replaces."""
    from ultramem_deploy.layout import decoder_shapes

    prefix = f"model.layers.{block}.mlp"
    names = (f"{prefix}.gate.", f"{prefix}.experts.")
    return [name for name in decoder_shapes(decoder) if name.startswith(names)]
