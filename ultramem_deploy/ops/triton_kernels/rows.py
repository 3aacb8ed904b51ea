"""Kernels over gathered table rows: their weighted sum, their dot products with a vector, and the table's gradient.

SparseLookup is the sum, its scores' gradient the dot products; SparseGate is the dot products, its input's gradient a
sum. So three kernels serve both operators in both directions. Offsets are 64-bit; every sum is in float32 and in a
fixed order, without atomics: equal inputs give equal bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

WIDEST = 512
"""Columns of a tile: 128 threads take 16 bytes of float32 each."""


@triton.jit
def weighted_sum_kernel(
    table, addresses, scores, out, rows, width, core_width, taken, blocks,
    BLOCKS: tl.constexpr, ONE_CORE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out[t, e, d] = sum over k in block e of scores[t, k, core of d] * table[row_k, d]; a tile of d a program."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    cores = width // core_width
    block_ids = tl.arange(0, BLOCKS)
    total = tl.zeros((BLOCKS, COLUMNS), tl.float32)
    for start in range(0, taken, ROWS):
        k = start + tl.arange(0, ROWS)
        wanted = k < taken
        address = tl.load(addresses + token * taken + k, mask=wanted, other=0)
        cell = wanted[:, None] & inside[None, :]
        values = tl.load(table + (address % rows)[:, None] * width + column[None, :], mask=cell, other=0.0)
        score = scores + (token * taken + k) * cores
        if ONE_CORE:
            weight = tl.load(score + tl.program_id(1) * COLUMNS // core_width, mask=wanted, other=0.0)[:, None]
        else:
            weight = tl.load(score[:, None] + (column // core_width)[None, :], mask=cell, other=0.0)
        weighted = values.to(tl.float32) * weight.to(tl.float32)
        if BLOCKS == 1:
            total += tl.sum(weighted, 0)[None, :]
        else:
            member = block_ids[:, None, None] == (address // rows)[None, :, None]
            total += tl.sum(tl.where(member, weighted[None, :, :], 0.0), 1)
    at = (token * blocks + block_ids[:, None]) * width + column[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=(block_ids < blocks)[:, None] & inside[None, :])


@triton.jit
def dots_kernel(
    table, addresses, vectors, out, rows, width, core_width, taken, blocks,
    ONE_BLOCK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out[t, k, c] = sum over the columns d of core c of table[row_k, d] * vectors[t, block_k, d]; ROWS k a program."""
    token = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    wanted = k < taken
    address = tl.load(addresses + token * taken + k, mask=wanted, other=0)
    row, vector = address % rows * width, (token * blocks + address // rows) * width
    cores = width // core_width
    for core in range(cores):
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, core_width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = column < core_width
            cell = wanted[:, None] & inside[None, :]
            column += core * core_width
            values = tl.load(table + row[:, None] + column[None, :], mask=cell, other=0.0)
            if ONE_BLOCK:
                other = tl.load(vectors + token * width + column, mask=inside, other=0.0)[None, :]
            else:
                other = tl.load(vectors + vector[:, None] + column[None, :], mask=cell, other=0.0)
            total += values.to(tl.float32) * other.to(tl.float32)
        tl.store(out + (token * taken + k) * cores + core, tl.sum(total, 1).to(out.dtype.element_ty), mask=wanted)


@triton.jit
def table_gradient_kernel(
    gradient, order, ends, addresses, scores, vectors, rows, width, core_width, taken, blocks,
    ONE_CORE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """gradient[row, d] = sum over the uses (t, k) of row of scores[t, k, core of d] * vectors[t, block_k, d].

    order: the uses sorted by row, stably; ends[i]: where the row of order[i] ends. The program of a row's first use
    takes them all, in order; the others have nothing to do.
    """
    first = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    cores = width // core_width
    end = tl.load(ends + first)
    row = tl.load(addresses + tl.load(order + first)) % rows
    starts = first == 0
    if first > 0:
        starts = tl.load(addresses + tl.load(order + first - 1)) % rows != row
    if starts:
        total = tl.zeros((COLUMNS,), tl.float32)
        for start in range(first, end, ROWS):
            place = start + tl.arange(0, ROWS)
            wanted = place < end
            use = tl.load(order + place, mask=wanted, other=0)
            block = tl.load(addresses + use, mask=wanted, other=0) // rows
            cell = wanted[:, None] & inside[None, :]
            vector = ((use // taken) * blocks + block) * width
            values = tl.load(vectors + vector[:, None] + column[None, :], mask=cell, other=0.0)
            if ONE_CORE:
                score = scores + use * cores + tl.program_id(1) * COLUMNS // core_width
                weight = tl.load(score, mask=wanted, other=0.0)[:, None]
            else:
                weight = tl.load(
                    scores + (use * cores)[:, None] + (column // core_width)[None, :], mask=cell, other=0.0
                )
            total += tl.sum(values.to(tl.float32) * weight.to(tl.float32), 0)
        tl.store(gradient + row * width + column, total.to(gradient.dtype.element_ty), mask=inside)


def weighted_sum(table: torch.Tensor, addresses: torch.Tensor, scores: torch.Tensor, blocks: int) -> torch.Tensor:
    """table [N, D], addresses [T, K] int64 in [0, blocks*N), scores [T, K, M] -> [T, blocks*D] like `scores`."""
    (rows, width), (tokens, taken, cores) = table.shape, scores.shape
    out = scores.new_empty((tokens, blocks * width))
    columns = _columns(width, WIDEST if blocks == 1 else WIDEST // 4)
    if out.numel():
        weighted_sum_kernel[tokens, triton.cdiv(width, columns)](
            table.contiguous(), addresses.contiguous(), scores.contiguous(), out, rows, width, width // cores,
            taken, blocks, BLOCKS=triton.next_power_of_2(blocks), ONE_CORE=width // cores % columns == 0,
            ROWS=_rows(taken, 16 if blocks == 1 else 8), COLUMNS=columns,
        )  # fmt: skip
    return out


def dots(table: torch.Tensor, addresses: torch.Tensor, vectors: torch.Tensor, cores: int, blocks: int) -> torch.Tensor:
    """table [N, D], addresses [T, K] int64 in [0, blocks*N), vectors [T, blocks*D] -> float32 [T, K, cores]."""
    (rows, width), (tokens, taken) = table.shape, addresses.shape
    out = torch.empty((tokens, taken, cores), dtype=torch.float32, device=table.device)
    tile = _rows(taken, 8)
    if out.numel():
        dots_kernel[tokens, triton.cdiv(taken, tile)](
            table.contiguous(), addresses.contiguous(), vectors.contiguous(), out, rows, width, width // cores,
            taken, blocks, ONE_BLOCK=blocks == 1, ROWS=tile, COLUMNS=_columns(width // cores, WIDEST // 2),
        )  # fmt: skip
    return out


def table_gradient(
    table: torch.Tensor, addresses: torch.Tensor, scores: torch.Tensor, vectors: torch.Tensor, blocks: int
) -> torch.Tensor:
    """The gradient [N, D], in the table's type, of `weighted_sum` given that of its output, vectors [T, blocks*D]."""
    (rows, width), (_, taken, cores) = table.shape, scores.shape
    gradient = torch.zeros_like(table)
    sorted_rows, order = (addresses.flatten() % rows).sort(stable=True)
    ends = torch.searchsorted(sorted_rows, sorted_rows, right=True)
    columns = _columns(width, WIDEST)
    if addresses.numel():
        table_gradient_kernel[addresses.numel(), triton.cdiv(width, columns)](
            gradient, order, ends, addresses.contiguous(), scores.contiguous(), vectors.contiguous(),
            rows, width, width // cores, taken, blocks, ONE_CORE=width // cores % columns == 0, ROWS=8, COLUMNS=columns,
        )  # fmt: skip
    return gradient


def _columns(width: int, most: int) -> int:
    return int(min(triton.next_power_of_2(width), most))


def _rows(taken: int, most: int) -> int:
    return int(min(triton.next_power_of_2(max(taken, 1)), most))
