"""Timing on a GPU: CUDA graphs and events, so that neither the interpreter nor a launch is measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

CALLS = 10  # of the action in one graph


def seconds(action: Callable[[], object], device: str, repeats: int = 9) -> float:
    """Median seconds of one call. On the CPU, for trying a benchmark out, the wall clock's."""
    action()
    if device == "cpu":
        return statistics.median(_clock(action) for _ in range(repeats))
    graph = _graph(action)
    return statistics.median(_events(graph.replay) for _ in range(repeats)) / CALLS


def copy_bandwidth(device: str, nbytes: int = 1 << 31) -> float:
    """Bytes a second, read and written together, of the device's own copy."""
    source = torch.zeros(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * nbytes / seconds(lambda: target.copy_(source), device)


def _graph(action: Callable[[], object]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        action()  # libraries set themselves up outside the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            action()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def _events(action: Callable[[], object]) -> float:
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    action()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


def _clock(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
