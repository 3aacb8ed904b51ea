"""Which neurons of all experts share a column, and the column keys that predict what they do (method `experts`).

A product key has one column key for all rows, so the neurons in a column should be active together, whatever their
expert. What a neuron adds is |act(<g, x>) <u, x>| |down|; its logarithm is fitted as a linear form of x, neurons with
like forms share a column (an assignment problem an expert), and a column's key is the mean form of its neurons.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ultramem_deploy.errors import InputError
from ultramem_deploy.model.ffn import Experts, GatedMLP

RIDGE = 1e-1
ROUNDS = 4
FLOOR = 1e-6  # of the mean activity: a neuron that is exactly silent has no logarithm
TINY = torch.finfo(torch.float32).tiny  # for an expert whose neurons are all silent, as pruned ones are


@dataclass(frozen=True)
class Columns:
    """order [E, I]: the neuron of expert e in column j; keys float32 [I, d] and bias [I] give log-activity."""

    order: np.ndarray
    keys: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Routed:
    """Some FFN inputs of a block, float32 [T, d], the experts that the router chose and their weights, both [T, k]."""

    inputs: torch.Tensor
    chosen: torch.Tensor
    weights: torch.Tensor

    def load(self, count: int) -> torch.Tensor:
        """Fraction of all choices that each of `count` experts got, float64 [count]."""
        return torch.bincount(self.chosen.flatten(), minlength=count).double() / self.chosen.numel()


def plain_columns(count: int, width: int, hidden: int) -> Columns:
    """Neurons in their own order under keys that tell nothing: enough where all columns are taken."""
    order = np.tile(np.arange(width), (count, 1))
    return Columns(order, np.zeros((width, hidden), np.float32), np.zeros(width, np.float32))


def random_columns(count: int, width: int, hidden: int, seed: int) -> Columns:
    """Neurons anywhere under random keys: what fitting is compared with."""
    generator = np.random.default_rng(seed)
    order = np.stack([generator.permutation(width) for _ in range(count)])
    keys = generator.standard_normal((width, hidden), dtype=np.float32) * np.float32(hidden**-0.5)
    return Columns(order, keys, np.zeros(width, np.float32))


def popular_columns(experts: Experts, data: Routed) -> Columns:
    """Column j holds every expert's j-th most active neuron, and scores its mean log-activity."""
    order, level = [], []
    for activity in _activities(experts, data):
        mean = activity.mean(0) if len(activity) else torch.zeros(activity.shape[1])
        by_mean = mean.argsort(descending=True, stable=True)
        order.append(by_mean.numpy())
        if len(activity):
            level.append(mean[by_mean].clamp(min=FLOOR).log())
    bias = torch.stack(level).mean(0).numpy() if level else np.zeros(len(order[0]), np.float32)
    return Columns(np.stack(order), np.zeros((len(bias), data.inputs.shape[1]), np.float32), bias.astype(np.float32))


def fitted_columns(experts: Experts, data: Routed) -> Columns:
    """Alternates between keys and assignments, from the order by mean activity."""
    columns = popular_columns(experts, data)
    forms = {
        e: _forms(data.inputs[_tokens(data, e)], activity)
        for e, activity in enumerate(_activities(experts, data))
        if len(activity)  # an expert that nothing chose keeps its order: there is nothing to tell its neurons apart
    }
    order = columns.order.copy()
    # Distances between forms are distances between predictions: inputs have unit scale, the constant weighs as they do.
    metric = _metric(data.inputs)
    for _ in range(ROUNDS):
        mean = torch.stack([forms[e][order[e]] for e in forms]).mean(0)
        for e in forms:
            cost = torch.cdist(forms[e] @ metric, mean @ metric) ** 2
            neuron, column = _assign(cost.numpy())
            order[e][column] = neuron
    mean = torch.stack([forms[e][order[e]] for e in forms]).mean(0)
    return Columns(order, mean[:, :-1].numpy(), mean[:, -1].numpy())


def _tokens(data: Routed, expert: int) -> torch.Tensor:
    return (data.chosen == expert).any(1)


def _activities(experts: Experts, data: Routed) -> list[torch.Tensor]:
    """What each neuron adds for the tokens of its expert, [tokens, I] an expert; the router's weight left out."""
    return [activity_of(expert, data.inputs[_tokens(data, e)]) for e, expert in enumerate(experts.experts)]


def activity_of(expert: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """|act(<g, x>) <u, x>| |down| of every neuron, float32 [T, I]."""
    if not isinstance(expert, GatedMLP):
        raise TypeError("an expert is a gated FFN")
    inner = F.silu(x @ expert.gate_proj.weight.float().T) * (x @ expert.up_proj.weight.float().T)
    activity: torch.Tensor = inner.abs() * expert.down_proj.weight.float().norm(dim=0)
    return activity


def _forms(x: torch.Tensor, activity: torch.Tensor) -> torch.Tensor:
    """Ridge regression of log-activity on [x, 1], float32 [I, d+1]."""
    target = activity.clamp(min=max(FLOOR * float(activity.mean()), TINY)).log()
    center, level = x.mean(0), target.mean(0)
    shifted = (x - center).double()
    gram = shifted.T @ shifted
    gram.diagonal().add_(RIDGE * float(gram.diagonal().mean()) + 1e-9)
    slope = torch.linalg.solve(gram, shifted.T @ (target - level).double()).T.float()
    return torch.cat([slope, (level - slope @ center)[:, None]], dim=1)


def _metric(x: torch.Tensor) -> torch.Tensor:
    """A square root of the second moments of [x, 1]."""
    extended = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    values, vectors = torch.linalg.eigh(extended.T @ extended / len(x))
    root: torch.Tensor = vectors * values.clamp(min=0).sqrt()
    return root


def _assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (row, column) of least total cost. Raises InputError where SciPy is not installed."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise InputError("--columns fitted: needs SciPy: pip install 'ultramem-deploy[upcycle]'") from None
    rows, columns = linear_sum_assignment(cost)
    return rows, columns
