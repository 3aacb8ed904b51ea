"""The three operators of the domain `ai.ultramem` (spec §5), each defined once in its own file."""

from . import sparse_gate, sparse_lookup, tucker_topk
from .schema import DOMAIN, VERSION, Operator

OPERATORS: tuple[Operator, ...] = (tucker_topk.OPERATOR, sparse_gate.OPERATOR, sparse_lookup.OPERATOR)

__all__ = ["DOMAIN", "OPERATORS", "VERSION", "Operator", "sparse_gate", "sparse_lookup", "tucker_topk"]
