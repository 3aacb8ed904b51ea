"""Where tables lie: the copies that a process shares, the advice on mapped ones, and what is refused."""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import builders
from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.errors import InputError
from ultramem_deploy.model import load
from ultramem_deploy.ops import native, placement
from ultramem_deploy.ops.sparse_lookup import reference, sparse_lookup
from ultramem_deploy.tables import MODES, overlapped, wanted

ROWS, WIDTH, OFFSET = 3001, 301, 1204  # an odd end, and a start that is on no page
PAGE = mmap.PAGESIZE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "table"
    numbers = np.random.default_rng(3).standard_normal(OFFSET // 4 + ROWS * WIDTH).astype(np.float32)
    path.write_bytes(numbers.tobytes())
    return path


def mapped(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.memmap(path, np.float32, "c", OFFSET, (ROWS, WIDTH)))


def flags(address: int) -> set[str]:
    """What the system says of the mapping that holds an address: "rr" random reads expected, "hg" huge pages."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(x, 16) for x in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return set(line.split()[1:])
    return set()


def test_a_resident_copy_is_shared_until_its_last_holder_goes(file: Path) -> None:
    table = mapped(file)
    first, second = (placement.placed("t", mapped(file), "resident") for _ in range(2))
    assert first.data_ptr() == second.data_ptr() != table.data_ptr()
    assert first.data_ptr() % (2 << 20) == 0
    torch.testing.assert_close(first, table, rtol=0, atol=0)
    if Path("/sys/kernel/mm/transparent_hugepage/enabled").is_file():
        assert "hg" in flags(first.data_ptr())
    where = first.data_ptr()
    del first
    gc.collect()
    torch.testing.assert_close(second, table, rtol=0, atol=0)
    del second
    gc.collect()
    assert not any(flag == "hg" for flag in flags(where))


def test_a_part_of_the_tensor_keeps_the_copy(file: Path) -> None:
    row = placement.placed("t", mapped(file), "resident")[5]
    gc.collect()
    torch.testing.assert_close(row, mapped(file)[5], rtol=0, atol=0)


def test_a_file_that_changed_is_another_one(file: Path) -> None:
    before = placement.placed("t", mapped(file), "resident")
    content = bytearray(file.read_bytes())
    content[OFFSET : OFFSET + 4] = np.float32(77).tobytes()
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))  # a clock that ticks slowly would not tell
    after = placement.placed("t", mapped(file), "resident")
    assert float(after[0, 0]) == 77 != float(before[0, 0])


def test_mapped_tables_are_read_in_place(file: Path) -> None:
    original = mapped(file)
    table = placement.placed("t", original, "mapped")
    assert table.data_ptr() == original.data_ptr() in native.READ_AHEAD
    assert "rr" in flags(table.data_ptr() + PAGE)
    again = placement.placed("t", original, "mapped")  # advice has split the mapping
    assert again.data_ptr() in native.READ_AHEAD
    where = table.data_ptr()
    del table, again
    gc.collect()
    assert where not in native.READ_AHEAD


@pytest.fixture
def evicted(file: Path) -> Iterator[torch.Tensor]:
    """A mapped table that is not in memory, where the filesystem can do without."""
    table = placement.placed("t", mapped(file), "mapped")
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    yield table
    os.close(descriptor)


def pages_in_memory(table: torch.Tensor) -> np.ndarray:
    """bool: of the pages from the table's first to its last."""
    begin = table.data_ptr() // PAGE * PAGE
    size = table.data_ptr() + table.nbytes - begin
    found = (placement.ctypes.c_ubyte * (-(-size // PAGE)))()
    libc = placement.ctypes.CDLL(None)
    assert libc.mincore(placement.ctypes.c_void_p(begin), placement.ctypes.c_size_t(size), found) == 0
    return np.frombuffer(found, np.uint8) % 2 == 1


@pytest.mark.parametrize("ask", [native.read_ahead, native.ask_ahead])
def test_rows_are_asked_for_and_others_are_not(
    evicted: torch.Tensor, ask: Callable[[torch.Tensor, torch.Tensor], None]
) -> None:
    if pages_in_memory(evicted).any():
        pytest.skip("this filesystem keeps files in memory")
    rows = torch.arange(0, ROWS, 100)
    ask(evicted, rows)
    first = evicted.data_ptr() // PAGE
    wanted_pages = [(evicted[row].data_ptr() + byte) // PAGE - first for row in rows for byte in (0, 4 * WIDTH - 1)]
    deadline = time.monotonic() + 20
    while not pages_in_memory(evicted)[wanted_pages].all() and time.monotonic() < deadline:
        time.sleep(0.01)
    found = pages_in_memory(evicted)
    assert found[wanted_pages].all()
    assert found.sum() < len(found) / 2


LEAVES = """
import mmap, os, sys
import torch
from ultramem_deploy.ops import native
from ultramem_deploy.ops.placement import placed
memory = mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 0, prot=mmap.PROT_READ)
table = placed("t", torch.frombuffer(memory, dtype=torch.float32)[:900_000].view(-1, 300), "mapped")
addresses = torch.randint(len(table), (1000, 32))
for _ in range(50):
    native.ask_ahead(table, addresses)  # more than may wait
del table, memory
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
library = native.kernels()
library.ask_ahead(native._DESCRIBED.pack(4096, 0, 9, 4096, 4096, 0, True), addresses.data_ptr(), addresses.numel())
"""


@pytest.mark.filterwarnings("ignore")
def test_a_process_ends_while_rows_are_asked_for(file: Path) -> None:
    """The table goes, a child is forked and asks for rows of no table at all, both end."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LEAVES, file], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_the_lookup_reads_what_is_on_the_disk(evicted: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    addresses = torch.randint(2 * ROWS, (40, 30), generator=generator)
    scores = torch.randn(40, 30, 1, generator=generator)
    found = sparse_lookup(evicted, addresses, scores, 2)
    # float32 sums of thirty terms near 1.
    torch.testing.assert_close(found, reference(evicted.clone(), addresses, scores, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_memory_of_no_file_stays(mode: str) -> None:
    table = torch.randn(100, 8)
    assert placement.placed("t", table, mode) is table


def test_small_tables_stay_unless_asked_for(file: Path) -> None:
    table = mapped(file)
    assert placement.placed("t", table, "auto") is table


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_what_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with open(path, "wb") as stream:
        stream.truncate(1 << 42)  # no byte of it is stored
    table = torch.from_numpy(np.memmap(path, np.uint8, "r"))
    with pytest.raises(InputError, match=r"t\.values: tables=resident needs 4398\.0 GB .* use tables=mapped"):
        placement.placed("t.values", table, "resident")
    assert placement.placed("t.values", table, "auto").data_ptr() in native.READ_AHEAD


def test_without_the_library(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_library", lambda: None)
    table = mapped(file)
    assert placement.placed("t", table, "auto") is table
    with pytest.raises(InputError, match="tables=mapped: the native kernels are not there"):
        placement.placed("t", table, "mapped")


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULTRAMEM_TABLES", "mapped")
    assert wanted(None) == "mapped"
    assert wanted("resident") == "resident"
    with pytest.raises(InputError, match="tables: expected one of auto, resident, mapped, found 'there'"):
        wanted("there")
    monkeypatch.setenv("ULTRAMEM_TABLES", "x")
    with pytest.raises(InputError, match="ULTRAMEM_TABLES: expected one of"):
        wanted(None)


def test_overlap_is_on_unless_the_environment_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ULTRAMEM_OVERLAP", raising=False)
    assert overlapped(None)
    monkeypatch.setenv("ULTRAMEM_OVERLAP", "0")
    assert not overlapped(None)
    assert overlapped(True)
    monkeypatch.setenv("ULTRAMEM_OVERLAP", "no")
    with pytest.raises(InputError, match="ULTRAMEM_OVERLAP: expected 0 or 1, found 'no'"):
        overlapped(None)


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_a_loaded_model_computes_the_same(name: str, tmp_path: Path) -> None:
    path = builders.write_checkpoint(tmp_path / name, {"v1": builders.V1, "v2": builders.V2}[name])
    ids = torch.arange(12)[None] % 61
    expected = load(path)(ids)
    stored = Checkpoint.open(path)
    for mode in MODES[1:]:
        model = load(path, tables=mode)
        torch.testing.assert_close(model(ids), expected, rtol=0, atol=0)
        for table, module in model.tables.items():
            values = module.values
            assert (values.data_ptr() in native.READ_AHEAD) == (mode == "mapped")
            torch.testing.assert_close(values, stored.torch(f"tables.{table}.values"), rtol=0, atol=0)
