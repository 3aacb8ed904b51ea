"""Sizes of added memory layers chosen from budgets: parameters in tables, multiplications a token."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from ultramem_deploy.errors import InputError
from ultramem_deploy.planning import parameter_counts
from ultramem_deploy.spec import ModelSpec

from .identity_options import IdentityOptions

MOST_TOP_M = 256
Build = Callable[[IdentityOptions], ModelSpec]


def sized(dense: ModelSpec, options: IdentityOptions, build: Build) -> IdentityOptions:
    """The options with `knum` and `top_m` as the budgets have them; `build` makes the description of given options.

    `sparse_parameters` r: numbers in tables are about r times the dense model's parameters (P1's "12x"); knum is the
    nearest. `compute_budget` f: the memory multiplies at most f times what the dense model does a token; top_m is the
    largest that stays below. Raises InputError where no size does.
    """
    if options.sparse_parameters:
        options = replace(options, knum=_knum(dense, options, build))
    return replace(options, top_m=_top_m(dense, options, build)) if options.compute_budget else options


def _knum(dense: ModelSpec, options: IdentityOptions, build: Build) -> int:
    # The smallest side that the values taken fit on: there the tables' numbers are counted, which grow as its square.
    side = math.isqrt(options.top_m) + 1
    unit = parameter_counts(build(replace(options, knum=side)))["parameters_table"] / side**2
    wanted = options.sparse_parameters * parameter_counts(dense)["parameters_total"]
    knum = round(math.sqrt(wanted / unit))
    if knum < side:
        raise InputError(
            f"--sparse-parameters: {options.sparse_parameters} times the model's parameters are tables"
            f" of {max(knum, 0)} x {max(knum, 0)} rows, and --top-m {options.top_m} needs {side} x {side}; give more,"
            " fewer --paths, or a smaller --value-width or --top-m"
        )
    return knum


def _top_m(dense: ModelSpec, options: IdentityOptions, build: Build) -> int:
    before = parameter_counts(dense)["parameters_active"]

    def share(top_m: int) -> float:
        return parameter_counts(build(replace(options, top_m=top_m)))["parameters_active"] / before - 1

    if share(1) > options.compute_budget:
        raise InputError(
            f"--compute-budget: projections and keys alone multiply {share(1):.3f} of what the model does, found"
            f" {options.compute_budget}; give more, a smaller --knum, --key-width or --value-width, or fewer --paths"
        )
    low, high = 1, min(MOST_TOP_M, options.knum**2)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if share(middle) <= options.compute_budget else (low, middle - 1)
    return low
