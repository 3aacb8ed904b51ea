"""Sizes and peaks: by hand, against the modules, and against the memory that a long prompt really takes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ultramem_deploy
from tests import builders as b
from tests.model.test_memory import KINDS, build, hidden_states
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.model import UltraMemModel
from ultramem_deploy.planning import PREFILL_BUDGET, parameter_counts, prefill_bytes, prefill_chunk
from ultramem_deploy.spec import ModelSpec, TableSpec

MIB = 1 << 20


def test_counts_by_hand() -> None:
    # d = 32, FFN 48, 4 query and 2 key-value heads of 16, 2 blocks, 61 tokens.
    block = 32 * 64 + 2 * 32 * 32 + 64 * 32 + 3 * 32 * 48 + 2 * 32
    dense = 2 * block + 32
    head = 61 * 32
    # One query of 2*8, keys [2, 2, 12, 8] a side, two norms of 8, cores [2, 2, 2, 2], output [32, 4*16].
    memory = 16 * 32 + 2 * 2 * 2 * 12 * 8 + 2 * 8 + 16 + 32 * 64
    table = 36 * 16
    rows_read = 2 * 4 * 16
    assert parameter_counts(b.PLAIN) == {
        "parameters_total": dense + 2 * head,
        "parameters_table": 0,
        "parameters_active": dense + head,
    }
    assert parameter_counts(b.V1) == {
        "parameters_total": dense + 2 * head + memory + table,
        "parameters_table": table,
        "parameters_active": dense + head + memory + rows_read,
    }


def test_counts_of_a_shared_gated_table_by_hand() -> None:
    plain = parameter_counts(ModelSpec(b.decoder(tie_embeddings=True)))
    found = parameter_counts(replace(b.V2, decoder=b.decoder(tie_embeddings=True)))
    assert plain["parameters_total"] == plain["parameters_active"], "a tied embedding counts once"
    layer = 16 * 32 + 768 + 16 + 16 + 32 * 16 + 8 * 32
    assert found["parameters_table"] == 60 * (16 + 8)
    assert found["parameters_total"] - plain["parameters_total"] == 2 * layer + 60 * 24
    assert found["parameters_active"] - plain["parameters_active"] == 2 * (layer + 8 * 24)


@pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS)
def test_total_is_the_modules(spec: ModelSpec) -> None:
    counts = parameter_counts(spec)
    model = UltraMemModel(spec)
    assert counts["parameters_total"] == sum(p.numel() for p in model.parameters())
    assert counts["parameters_table"] == sum(p.numel() for p in model.tables.parameters())


def test_prefill_chunk() -> None:
    assert prefill_chunk(b.PLAIN) == 512
    per_token = prefill_bytes(b.V1, 1)
    assert prefill_bytes(b.V1, 100) == 100 * per_token
    assert prefill_chunk(b.V1, budget=10 * per_token + 1) == 10
    assert prefill_chunk(b.V1, budget=1) == 1
    assert prefill_chunk(b.V1) == 512


def wide(expanded: bool) -> ModelSpec:
    """A layer that takes 64 rows of 2*512 or, unexpanded, of 512 numbers a token."""
    dense = b.decoder(hidden_size=512, intermediate_size=16, num_layers=1, vocab_size=61)
    layer = b.ultramem_v1(read_block=0, write_block=0, top_m=32, row_keys=32, col_keys=32, slots=256)
    if expanded:
        layer = replace(layer, slots=1024, blocks=1, shuffle=False, expanded=True)
    return ModelSpec(dense, (layer,), {"t": TableSpec(layer.slots, 1024 if expanded else 512)})


def scores_wide() -> ModelSpec:
    """A layer whose key scores outweigh its values."""
    return replace(b.V1, memory=(b.ultramem_v1(row_keys=1024, col_keys=1024, slots=1 << 18),),
                   tables={"t": TableSpec(1 << 18, 16)})  # fmt: skip


def additive_wide() -> ModelSpec:
    layer = b.memory_plus(row_keys=1024, col_keys=1024, slots=1 << 20)
    return replace(b.PLUS, memory=(layer,), tables={"t": TableSpec(1 << 20, 4)})


PEAKS = {
    "expanded": wide(expanded=True),
    "four blocks": wide(expanded=False),
    "many keys": scores_wide(),
    "additive": additive_wide(),
}


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("spec", PEAKS.values(), ids=PEAKS)
def test_prefill_bytes_bound_what_torch_allocates(
    spec: ModelSpec, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Close for the reference operators, which hold every step of their formulas; a bound for the native ones too."""
    if not native:
        monkeypatch.setattr("ultramem_deploy.ops.native.kernels", lambda: None)
    tokens = 16
    with torch.device("meta"):
        model = UltraMemModel(spec)
    tensors = {name: torch.zeros(t.shape) for name, t in tensor_layout(spec).items()}
    for name in tensors:
        if name.endswith(".shuffle"):
            tensors[name] = torch.arange(len(tensors[name]))
    model.load_state_dict(tensors, assign=True)
    peak = allocated_peak(model.requires_grad_(False), torch.randn(tokens, spec.decoder.hidden_size))
    bound = prefill_bytes(spec, tokens)
    # An eighth: tokens that read most of a small table multiply with it whole, and gather no rows.
    assert (native or bound / 8 < peak) and 0 < peak <= bound * 1.05, (
        f"peak {peak / MIB:.2f} MiB, bound {bound / MIB:.2f} MiB"
    )


def allocated_peak(model: UltraMemModel, hidden: torch.Tensor) -> int:
    """The most bytes held at once in the layer, summed from the profiler's record of every allocation."""
    layer, table = model.memory[0], model.tables["t"]
    layer(hidden[:1], table)
    with torch.profiler.profile(profile_memory=True) as profile:
        layer(hidden, table)
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


LONG_PROMPT = r"""
import re, sys
import numpy as np
from pathlib import Path
from ultramem_deploy.runtime.torch_runner import TorchRunner

def peak():  # not getrusage's: that one starts at the parent's
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024

runner = TorchRunner(Path(sys.argv[1]))
session = runner.session()
session.feed(np.zeros((1, 4), np.int64))
before = peak()
session.feed(np.random.default_rng(0).integers(0, 61, (1, int(sys.argv[2]))))
print(peak() - before)
"""


def test_a_long_prompt_stays_within_the_budget(tmp_path: Path) -> None:
    spec = wide(expanded=True)
    model = b.write_checkpoint(tmp_path / "model", spec)
    tokens = 2048
    assert prefill_bytes(spec, tokens) > 1000 * MIB, "fed at once this would stand out"
    root = Path(ultramem_deploy.__file__).parents[1]
    command = [sys.executable, "-c", LONG_PROMPT, str(model), str(tokens)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout)
    assert grown < PREFILL_BUDGET, f"{grown / MIB:.0f} MiB"


def test_chunks_equal_the_whole() -> None:
    spec = wide(expanded=True)
    model = build(spec, b.random_tensors(spec))
    hidden = hidden_states(0, tokens=96, width=512)
    layer, table = model.memory[0], model.tables["t"]
    whole = layer(torch.from_numpy(hidden), table).numpy()
    parts = [layer(torch.from_numpy(part), table).numpy() for part in np.array_split(hidden, 7)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-4, atol=1e-4 * np.abs(whole).max())
