"""The verbs as functions: what the command line calls and `import ultramem_deploy` offers.

Every stage takes a source and an output directory; `progress(done, total, what)` is called as it goes. Failures raise
`errors.InputError` (bad input or usage) or `errors.CheckFailed` (a comparison that failed).
"""

from __future__ import annotations

from .arguments import Budget, Progress
from .artifacts import build, bundle, check_bundle, export, triton_repository
from .checkpoints import convert, diff, fold, heal, patch, quantize, upcycle
from .running import generate, plan, profile, verify

__all__ = [
    "Budget",
    "Progress",
    "build",
    "bundle",
    "check_bundle",
    "convert",
    "diff",
    "export",
    "fold",
    "generate",
    "heal",
    "patch",
    "plan",
    "profile",
    "quantize",
    "triton_repository",
    "upcycle",
    "verify",
]
