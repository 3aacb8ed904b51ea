"""What `heal` can be told; apart from the training loop, so that `--help` needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

TRAINABLE = {
    "memory": ("memory.", "tables."),
    "keys": ("query.weight", "query_norm.", "key_norm.", "row_keys", "col_keys", "core"),
}


@dataclass(frozen=True)
class HealOptions:
    """`train` "memory" trains everything in the memory layers, "keys" only what retrieves.

    Learning rates are AdamW's; the tables' own (`value_lr`) is higher, as in P1, and both fall linearly to zero
    after `warmup` steps. One step reads `batch` windows of `length` tokens.
    """

    steps: int = field(default=60, metadata={"help": "Optimizer steps."})
    batch: int = field(default=4, metadata={"help": "Windows a step."})
    length: int = field(default=256, metadata={"help": "Tokens a window."})
    lr: float = field(default=5e-3, metadata={"help": "Learning rate of everything but the tables."})
    value_lr: float = field(default=2e-2, metadata={"help": "Learning rate of the tables."})
    warmup: int = field(default=5, metadata={"help": "Steps over which the learning rates rise."})
    train: str = field(
        default="memory",
        metadata={"help": "memory: all of the memory layers; keys: what retrieves.", "choices": tuple(TRAINABLE)},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the order of the windows."})
