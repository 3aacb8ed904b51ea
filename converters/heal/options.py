"""What `heal` can be told; apart from the training loop, so that `--help` needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ultramem_deploy.option_problems import Problem, below, unknown_choices

TRAINABLE = {
    "memory": ("memory.", "tables."),
    "keys": ("query.weight", "query_norm.", "key_norm.", "row_keys", "col_keys", "core"),
    "values": ("tables.", "output."),
    "all": ("",),
}
VALUE_SCHEDULES = ("fixed", "v1", "v2")
LOSSES = ("auto", "lm", "kl")
AUTOCASTS = ("bf16", "off")
DEVICES = ("cpu", "gpu")
NEW_LR, FITTED_LR, NEW_RATIO = 5e-3, 1e-4, 4
_LARGEST = 1e30  # AdamW fails beyond float32; nothing sensible is near


@dataclass(frozen=True)
class HealOptions:
    """`train`: "memory" everything in the memory layers, "keys" what retrieves, "values" what is retrieved, "all" the
    dense weights too.

    Learning rates are AdamW's and fall linearly to zero after `warmup` steps; 0 is what suits the layers: new ones, or
    such as hold weights of a source, which large steps would destroy. The tables' own is `value_lr` ("fixed"), or 10
    times `lr` falling to 1 ("v1", P1), or `lr` ("v2", P2). One step reads `accumulate` times `batch` windows of
    `length` tokens. `regression`, `loss` "kl" and what `--retain` asks for need a model to distil from.
    """

    steps: int = field(default=60, metadata={"help": "Optimizer steps."})
    batch: int = field(default=4, metadata={"help": "Windows at a time."})
    accumulate: int = field(default=1, metadata={"help": "Batches whose gradients make one step."})
    length: int = field(default=256, metadata={"help": "Tokens a window."})
    lr: float = field(
        default=0.0,
        metadata={
            "help": f"Learning rate of everything but the tables. 0: {NEW_LR:g} for new memory layers, whose output "
            f"projections are zero, {FITTED_LR:g} for others."
        },
    )
    value_lr: float = field(
        default=0.0,
        metadata={
            "help": f"Learning rate of the tables, where the schedule is fixed. 0: {NEW_RATIO} times --lr for new "
            "memory layers, --lr for others."
        },
    )
    value_schedule: str = field(
        default="fixed",
        metadata={
            "help": "Tables' learning rate. fixed: --value-lr; v1: 10 times --lr falling to 1; v2: --lr.",
            "choices": VALUE_SCHEDULES,
        },
    )
    warmup: int = field(default=5, metadata={"help": "Steps over which the learning rates rise."})
    train: str = field(
        default="memory",
        metadata={
            "help": "memory: all of the memory layers; keys: what retrieves; values: tables and output projections; "
            "all: the dense weights too.",
            "choices": tuple(TRAINABLE),
        },
    )
    loss: str = field(
        default="auto",
        metadata={
            "help": "lm: next token; kl: the predictions of --distill; auto: kl with --distill, unless --retain.",
            "choices": LOSSES,
        },
    )
    regression: float = field(
        default=0.25,
        metadata={
            "help": "Share of the steps that first fit each layer to --distill's activations (not with --retain)."
        },
    )
    retain_batch: int = field(default=1, metadata={"help": "Windows of --retain at a time, beside --batch."})
    retain_weight: float = field(default=1.0, metadata={"help": "Weight of the divergence from --distill on --retain."})
    autocast: str = field(
        default="bf16",
        metadata={"help": "Arithmetic of the dense layers; memory layers are in float32.", "choices": AUTOCASTS},
    )
    device: str = field(
        default="cpu", metadata={"help": "gpu: what accelerate finds (extra `hf`).", "choices": DEVICES}
    )
    eval_every: int = field(default=25, metadata={"help": "Steps between measurements of the held-out perplexity."})
    patience: int = field(
        default=0,
        metadata={"help": "Stop after this many measurements without a new best, and keep the best; 0: never."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the order of the windows."})

    def problems(self) -> Iterator[Problem]:
        """What no model can be given."""
        yield from unknown_choices(self)
        for name in ("steps", "batch", "accumulate", "retain_batch", "retain_weight", "eval_every"):
            if not 0 < getattr(self, name) < _LARGEST:
                yield name, f"must be positive, below {_LARGEST:g}, found {getattr(self, name)}"
        for name in ("lr", "value_lr"):
            if not 0 <= getattr(self, name) < _LARGEST:
                yield name, f"expected 0..{_LARGEST:g}, found {getattr(self, name)}"
        yield from below(self, 0, "must not be negative", "warmup", "patience")
        if not 0 <= self.seed < 1 << 63:
            yield "seed", f"expected 0..{(1 << 63) - 1}, found {self.seed}"
        if not 0 <= self.regression <= 1:
            yield "regression", f"expected a share of the steps, 0..1, found {self.regression}"
        yield from below(self, 2, "expected at least 2", "length")


def source_problems(options: HealOptions, distil: str | Path | None, retain: str | Path | None) -> Iterator[Problem]:
    """What is asked for that needs a model to distil from, where there is none."""
    if distil is None and retain is not None:
        yield "retain", "needs the model to compare with: give it by --distill"
    if distil is None and options.loss == "kl":
        yield "loss", "kl needs the model to compare with: give it by --distill"
