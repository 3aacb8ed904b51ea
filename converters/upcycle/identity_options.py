"""What `upcycle --method identity` lets a user choose."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from ultramem_deploy.option_problems import Problem, below, unknown_choices

LAYOUTS = ("v1", "v2")
CORES = 2


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

    def problems(self) -> Iterator[Problem]:
        """What no model can be given."""
        yield from unknown_choices(self)
        yield from below(self, 1, "must be positive", "knum", "key_width", "value_width", "top_m", "heads", "blocks")
        yield from below(self, 0, "must not be negative", "seed")
        if self.value_width % CORES:
            yield "value_width", f"must be a multiple of the {CORES} cores, found {self.value_width}"
        for name in ("sparse_parameters", "compute_budget"):
            if not 0 <= getattr(self, name) < math.inf:
                yield name, f"expected a positive number, found {getattr(self, name)}"
        if self.paths != "auto":
            try:
                path_pairs(self.paths)
            except ValueError as error:
                yield "paths", str(error)


def path_pairs(paths: str, blocks: int | None = None) -> list[tuple[int, int]]:
    """Block pairs of "a:b/c:d". ValueError where they are malformed or overlap, or lie beyond `blocks`."""
    try:
        pairs = [(int(a), int(b)) for a, b in (part.split(":") for part in paths.split("/"))]
    except ValueError:
        raise ValueError(f"expected read:write/read:write/…, found {paths!r}") from None
    last = -1
    for read, write in pairs:
        if not last < read <= write < (math.inf if blocks is None else blocks):
            within = "" if blocks is None else f" within 0..{blocks - 1}"
            raise ValueError(f"{read}:{write}: expected increasing, non-overlapping blocks{within}")
        last = write
    return pairs
