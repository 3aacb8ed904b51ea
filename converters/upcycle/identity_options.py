"""What `upcycle --method identity` lets a user choose."""

from __future__ import annotations

from dataclasses import dataclass, field

LAYOUTS = ("v1", "v2")


@dataclass(frozen=True)
class IdentityOptions:
    """Sizes of the added layers.

    `paths` is "read:write/read:write/…", or "auto": three late skip paths for layout v1, every block for v2.
    """

    paths: str = field(default="auto", metadata={"help": "Block pairs read:write/read:write/…, or auto."})
    knum: int = field(default=128, metadata={"help": "Physical keys a side: a table has knum*knum rows."})
    key_width: int = field(default=192, metadata={"help": "Width of a key."})
    value_width: int = field(default=256, metadata={"help": "Width of a table row."})
    top_m: int = field(default=16, metadata={"help": "Values taken a head."})
    heads: int = field(default=2, metadata={"help": "Retrieval heads."})
    blocks: int = field(default=4, metadata={"help": "Virtual blocks a table: the implicit value expansion."})
    seed: int = field(default=0, metadata={"help": "Seed of the initial values."})
    layout: str = field(
        default="v1",
        metadata={"help": "v1: tables of their own on skip paths; v2: a gated memory in every block, one table.",
                  "choices": LAYOUTS},
    )  # fmt: skip
    sparse_parameters: float = field(
        default=0.0, metadata={"help": "Numbers in tables, as a multiple of the model's parameters: chooses --knum."}
    )
    compute_budget: float = field(
        default=0.0, metadata={"help": "Multiplications added, as a share of the model's: chooses --top-m."}
    )
