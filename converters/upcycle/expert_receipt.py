"""What `experts` measures before any training: how experts are used, errors a block, perplexity and KL, baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ultramem_deploy.model import UltraMemModel
from ultramem_deploy.model.ffn import Experts, GatedMLP
from ultramem_deploy.spec import ExpertsSpec, ModelSpec

from .expert_columns import Routed, activity_of
from .expert_options import ExpertOptions, slots_taken
from .receipt import Drift

SAMPLE = 8192
"""FFN inputs kept of a block."""
HELD = 512
DEAD = 1e-6
Progress = Callable[[int, int, str], None]


def mixtures(model: UltraMemModel) -> list[Experts]:
    """The mixtures of experts of a model, block by block."""
    return [layer.mlp for layer in model.model.layers if isinstance(layer.mlp, Experts) and layer.mlp.routed]


@torch.no_grad()
def collect(model: UltraMemModel, windows: np.ndarray, progress: Progress | None = None) -> list[Routed]:
    """What every mixture reads and its router chooses over int64 windows [count, length], one window at a time."""
    kept: list[list[torch.Tensor]] = [[] for _ in mixtures(model)]
    step = max(1, windows.size // SAMPLE)
    with _reading(model, kept, step):
        for number, window in enumerate(windows):
            model(torch.from_numpy(window)[None], logits_to_keep=1)
            if progress:
                progress(number + 1, len(windows), "calibration")
    inputs = [torch.cat(parts).float() for parts in kept]
    return [Routed(x, *mixture.gate(x)) for x, mixture in zip(inputs, mixtures(model), strict=True)]


@contextmanager
def _reading(model: UltraMemModel, kept: list[list[torch.Tensor]], step: int) -> Iterator[None]:
    def collector(into: list[torch.Tensor]) -> Callable[..., None]:
        # The first position of a window is an attention sink, unlike all others: it tells nothing about the rest.
        return lambda module, arguments: into.append(arguments[0][0, 1::step].clone())

    hooks = [m.register_forward_pre_hook(collector(into)) for m, into in zip(mixtures(model), kept, strict=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def measure_experts(
    source: UltraMemModel,
    upcycled: UltraMemModel,
    data: list[Routed],
    orders: list[np.ndarray],
    windows: np.ndarray,
    options: ExpertOptions,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The receipt's measurements over held-out int64 windows [count, length]; both models float32.

    Baselines evaluate neurons of the source exactly: "oracle" the most active ones of the chosen experts, "experts"
    fewer whole experts, each as many neurons as the upcycled model takes.
    """
    names = ("source", "upcycled") if options.active == 1 else ("source", "upcycled", "oracle", "experts")
    drifts = {name: Drift() for name in names}
    kept: list[list[torch.Tensor]] = [[] for _ in data]
    top_m = slots_taken(mixtures(source)[0].spec, options.active)
    for number, window in enumerate(windows):
        ids = torch.from_numpy(window)
        with _reading(source, kept, 1):
            logits = source(ids[None])[0]
        for name, drift in drifts.items():
            if name in ("source", "upcycled"):
                found = logits if name == "source" else upcycled(ids[None])[0]
            else:
                with _selective(source, _oracle if name == "oracle" else _fewer, top_m):
                    found = source(ids[None])[0]
            drift.add(logits, found, ids)
        if progress:
            progress(number + 1, len(windows), "held-out text")
    found_by_name = {name: drift.result() for name, drift in drifts.items()}
    reference = found_by_name["source"]["perplexity"]
    for result in found_by_name.values():
        result["perplexity_ratio"] = result["perplexity"] / reference
    held = [torch.cat(parts)[-HELD:] for parts in kept]
    return {
        "perplexity_source": reference,
        **{key: found_by_name["upcycled"][key] for key in ("perplexity", "perplexity_ratio", "kl")},
        "baselines": {name: result for name, result in found_by_name.items() if name not in ("source", "upcycled")},
        "blocks": [_block(source, upcycled, i, data[i], orders[i], x, top_m) for i, x in enumerate(held)],
    }


def _block(
    source: UltraMemModel,
    upcycled: UltraMemModel,
    index: int,
    data: Routed,
    order: np.ndarray,
    x: torch.Tensor,
    top_m: int,
) -> dict[str, Any]:
    """Recall is the share of the top-m neurons by weighted activity that are retrieved."""
    mixture, memory = mixtures(source)[index], upcycled.memory_layers[index]
    table, spec = upcycled.tables[upcycled.spec.memory[index].table], mixture.spec
    exact = mixture.routed_output(x)
    found = memory(x, table)
    load = data.load(spec.count)
    return {
        "block": upcycled.spec.memory[index].read_block,
        "slots": spec.count * spec.width,
        "top_m": top_m,
        "relative_error": float((found - exact).norm() / exact.norm()),
        "recall": _recall(_weighted(mixture, x), memory.retrieve(x)[-1], order, top_m),
        "dead_experts": int((load < DEAD).sum()),
        "largest_expert_share": float(load.max()),
        "balance": float(1.0 / (load**2).sum() / spec.count),
    }


def _recall(weighted: torch.Tensor, indices: torch.Tensor, order: np.ndarray, top_m: int) -> float:
    """Mean share of the top-m entries of `weighted` [T, E, I] whose slots are among the virtual `indices` [T, K]."""
    by_slot = weighted.gather(2, torch.from_numpy(order).expand_as(weighted)).flatten(1)
    found = torch.zeros_like(by_slot).scatter(1, indices, 1.0)
    return float(found.gather(1, by_slot.topk(top_m, dim=1).indices).mean())


def _weighted(mixture: Experts, x: torch.Tensor) -> torch.Tensor:
    """Activity times router weight of every neuron, float32 [T, E, I]; 0 for experts that were not chosen."""
    activity = torch.stack([activity_of(expert, x) for expert in mixture.experts], dim=1)
    return activity * _router_weights(mixture, x)[..., None]


def _router_weights(mixture: Experts, x: torch.Tensor) -> torch.Tensor:
    """float32 [T, E], 0 where not chosen."""
    chosen, weights = mixture.gate(x)
    return torch.zeros(len(x), mixture.spec.count).scatter(1, chosen, weights)


def _oracle(mixture: Experts, x: torch.Tensor, top_m: int) -> torch.Tensor:
    """The top-m neurons that matter most, known exactly: what column keys could reach at best."""
    best = _weighted(mixture, x).flatten(1).topk(top_m, dim=1).indices
    mask = torch.zeros(len(x), mixture.spec.count * mixture.spec.width).scatter(1, best, 1.0)
    return _masked(mixture, x, mask.view(len(x), mixture.spec.count, -1))


def _fewer(mixture: Experts, x: torch.Tensor, top_m: int) -> torch.Tensor:
    """As many whole experts as `top_m` neurons make, those of the largest weight."""
    weights = _router_weights(mixture, x)
    best = weights.topk(max(1, round(top_m / mixture.spec.width)), dim=1).indices
    mask = torch.zeros_like(weights).scatter(1, best, 1.0)
    return _masked(mixture, x, mask[..., None].expand(-1, -1, mixture.spec.width))


def _masked(mixture: Experts, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mixture's routed output [T, d] with neurons weighed by `mask` [T, E, I]."""
    weights, out = _router_weights(mixture, x), torch.zeros_like(x)
    for number, expert in enumerate(mixture.experts):
        tokens = weights[:, number].nonzero()[:, 0]
        if len(tokens) and isinstance(expert, GatedMLP):
            part = x[tokens]
            inner = expert.activation(expert.gate_proj(part)) * expert.up_proj(part)
            part = expert.down_proj(inner * mask[tokens, number] * weights[tokens, number, None])
            out.index_add_(0, tokens, part)
    return out


@contextmanager
def _selective(model: UltraMemModel, choice: Callable[..., torch.Tensor], top_m: int) -> Iterator[None]:
    """The model with every mixture's routed output replaced by that of chosen neurons."""

    def hook(module: Experts, arguments: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        flat = arguments[0].flatten(0, -2)
        exact, chosen = module.routed_output(flat), choice(module, flat, top_m)
        return output + (chosen - exact).view_as(output)

    hooks = [mixture.register_forward_hook(hook) for mixture in mixtures(model)]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def expert_costs(experts: ExpertsSpec, spec: ModelSpec, options: ExpertOptions) -> dict[str, Any]:
    """Neurons and bytes a token reads of the mixtures (router and columns' keys counted), before and after."""
    hidden, top_m = spec.decoder.hidden_size, slots_taken(experts, options.active)
    before = experts.routing.top_k * experts.width
    # In numbers a token: keys of both sides, then a gate row, an up row and a down column a neuron.
    read = (experts.count + experts.width + 3 * top_m) * hidden
    source = (experts.count + 3 * before) * hidden
    return {
        "active_neurons": top_m,
        "active_neurons_source": before,
        "active_fraction": top_m / before,
        "numbers_read_a_token_and_layer": read,
        "numbers_read_a_token_and_layer_source": source,
    }
