"""ONNX Runtime sessions: caches, chunks, batches, padding, errors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tests import builders
from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.converters.onnx import export_onnx
from ultramem_deploy.errors import InputError
from ultramem_deploy.model import load
from ultramem_deploy.pipeline import upcycle
from ultramem_deploy.runtime import ort, ort_cache
from ultramem_deploy.runtime.ort import OrtRunner
from ultramem_deploy.runtime.ort_model import description_fingerprint
from ultramem_deploy.runtime.plugins import ort_library
from ultramem_deploy.spec import ModelSpec

TOLERANCE = 1e-4  # as tests/converters/onnx/test_export_parity.py: float32 sums in another order
IDS = np.random.default_rng(5).integers(0, 61, (3, 12))
WINDOW = builders.decoder(sliding_window=3, sliding_layers=(1,))
MODELS = {
    "window": ModelSpec(WINDOW),
    "odd_head_dim": ModelSpec(replace(WINDOW, head_dim=6)),
    "v1": builders.V1,
    "v2": replace(builders.V2, decoder=builders.decoder(max_positions=40)),
}
PARAMETERS = [(name, target) for name in MODELS for target in ("ort", "portable")]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("bundles")
    found = {}
    for name, model in MODELS.items():
        source = builders.write_checkpoint(folder / name, model)
        for target in ("ort", "portable"):
            found[name, target] = folder / f"{name}-{target}"
            export_onnx(source, found[name, target], target=target)
    return found


@pytest.fixture(params=PARAMETERS, ids=lambda p: "-".join(p))
def runner(request: pytest.FixtureRequest, bundles: dict[tuple[str, str], Path]) -> OrtRunner:
    return OrtRunner(bundles[request.param])


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("capacity", [2, 256])
def test_decode_equals_the_whole(runner: OrtRunner, capacity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_cache, "FIRST_CAPACITY", capacity)
    expected = runner.logits(IDS)
    session = runner.session()
    close(session.feed(IDS[:, :5]), expected[:, 4])
    for step in range(5, 12):
        close(session.feed(IDS[:, step : step + 1]), expected[:, step])


def test_chunked_prefill_equals_unchunked(runner: OrtRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = runner.trace(IDS)
    for chunk in (1, 4, 9):
        monkeypatch.setattr(ort, "prefill_chunk", lambda spec, chunk=chunk: chunk)
        parts = runner.trace(IDS)
        close(parts.logits, whole.logits)
        close(runner.logits(IDS[:1]), whole.logits[:1])
        for one, other in zip(whole.layers, parts.layers, strict=True):
            np.testing.assert_array_equal(np.sort(one.indices), np.sort(other.indices))


def test_feeding_several_tokens_to_a_batch(runner: OrtRunner) -> None:
    expected = runner.logits(IDS)
    session = runner.session()
    for start, stop in ((0, 4), (4, 5), (5, 9), (9, 10), (10, 12)):
        close(session.feed(IDS[:, start:stop]), expected[:, stop - 1])


def test_sessions_are_apart_and_results_stay(runner: OrtRunner) -> None:
    expected = runner.logits(IDS)
    first, second = runner.session(), runner.session()
    held = [first.feed(IDS[:1, :3]), second.feed(IDS[1:2, :5]), first.feed(IDS[:1, 3:4]), second.feed(IDS[1:2, 5:6])]
    for found, (row, position) in zip(held, ((0, 2), (1, 4), (0, 3), (1, 5)), strict=True):
        close(found, expected[row : row + 1, position])


def padded(runner: OrtRunner, left: bool) -> None:
    """Two prompts of 9 and 6 tokens in one batch, then one token each, against each on its own."""
    lengths, width = (9, 6), 9
    ids, mask = np.full((2, width), 60), np.zeros((2, width), np.int64)
    where = [slice(width - n, width) if left else slice(0, n) for n in lengths]
    for row, place in enumerate(where):
        ids[row, place], mask[row, place] = IDS[row, : lengths[row]], 1
    model = runner._model.session
    caches = [i.name for i in model.get_inputs() if i.name.startswith("past")]
    past = {name: np.zeros((2, 2, 0, runner.spec.decoder.head_dim), np.float32) for name in caches}
    prompt = model.run(None, {"input_ids": ids, "attention_mask": mask, **past})
    names = [o.name.replace("present", "past_key_values") for o in model.get_outputs()]
    after = np.stack([IDS[row, n : n + 1] for row, n in enumerate(lengths)])
    grown = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
    held = {name: value for name, value in zip(names, prompt, strict=True) if name != "logits"}
    step = model.run(["logits"], {"input_ids": after, "attention_mask": grown, **held})[0]
    for row, n in enumerate(lengths):
        expected = runner.logits(IDS[row : row + 1, : n + 1])[0]
        close(prompt[names.index("logits")][row, where[row]], expected[:n])
        close(step[row, 0], expected[n])


def test_right_padding(runner: OrtRunner) -> None:
    padded(runner, left=False)


@pytest.mark.parametrize("name", MODELS)
def test_left_padding_of_portable(name: str, bundles: dict[tuple[str, str], Path]) -> None:
    padded(OrtRunner(bundles[name, "portable"]), left=True)


def test_positions_end(bundles: dict[tuple[str, str], Path]) -> None:
    session = OrtRunner(bundles["v2", "ort"]).session()
    session.feed(np.zeros((1, 40), np.int64))
    with pytest.raises(InputError, match="41 tokens: the model has 40 positions"):
        session.feed(np.zeros((1, 1), np.int64))


def test_ids_are_checked(bundles: dict[tuple[str, str], Path]) -> None:
    session = OrtRunner(bundles["v2", "ort"]).session()
    for ids, message in (
        ([[3, 61]], r"3..61 outside the vocabulary \[0, 61\)"),
        ([[-1]], "-1..-1 outside"),
        ([[]], r"at least one of each, found \[1, 0\]"),
        ([1, 2], r"expected \[batch, tokens\]"),
    ):
        with pytest.raises(InputError, match=message):
            session.feed(np.array(ids, np.int64))
    session.feed(IDS[:2, :3])
    with pytest.raises(InputError, match="holds 2 sequences, found 3"):
        session.feed(IDS[:, 3:4])


def test_what_a_runner_says(bundles: dict[tuple[str, str], Path]) -> None:
    runner = OrtRunner(bundles["v1", "ort"], kernels=False, threads=1)
    assert (runner.name, runner.vocab_size, runner.spec) == ("ort-bodies", 61, MODELS["v1"])
    assert OrtRunner(bundles["v1", "ort"]).name == "ort"


def test_the_library_is_asked_for_where_it_matters(
    bundles: dict[tuple[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "libultramem_ort.so"
    broken.write_bytes(b"no library")
    monkeypatch.setenv("ULTRAMEM_ORT_LIBRARY", str(broken))
    OrtRunner(bundles["window", "ort"])
    OrtRunner(bundles["v1", "ort"], kernels=False)
    with pytest.raises(InputError, match="libultramem_ort"):
        OrtRunner(bundles["v1", "ort"])


def test_without_onnxruntime(bundles: dict[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install 'ultramem-deploy\[cpu\]'"):
        OrtRunner(bundles["v1", "ort"])


@pytest.mark.parametrize("target", ["ort", "portable"])
@pytest.mark.parametrize("kernels", [True, False])
def test_one_slot(tmp_path: Path, target: str, kernels: bool) -> None:
    """ONNX Runtime folds a tiny shuffle while it loads, so it must not lie in a file."""
    dense = builders.write_checkpoint(tmp_path / "dense", builders.PLAIN)
    upcycle(dense, tmp_path / "up", knum=1, top_m=1, blocks=1, key_width=8, value_width=6)
    export_onnx(tmp_path / "up", tmp_path / "out", target=target)
    close(
        OrtRunner(tmp_path / "out", kernels=kernels).logits(IDS), load(tmp_path / "up")(torch.from_numpy(IDS)).numpy()
    )


def test_what_is_no_bundle_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`ultramem-deploy export` makes one"):
        OrtRunner(tmp_path)


def test_a_wrong_instruction_set_is_named(bundles: dict[tuple[str, str], Path]) -> None:
    script = (
        "import sys; from pathlib import Path; from ultramem_deploy.runtime.ort import OrtRunner\n"
        "from ultramem_deploy.errors import InputError\n"
        "try: OrtRunner(Path(sys.argv[1]))\n"
        "except InputError as error: print(error)"
    )
    root = Path(ort.__file__).parents[2]
    environment = os.environ | {"ULTRAMEM_CPU": "sse9", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", script, str(bundles["v1", "ort"])]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert said.startswith("ULTRAMEM_CPU must be plain, avx2, avx512 or avx512_bf16") and "uild" not in said


def test_fields_at_their_defaults_do_not_change_a_fingerprint() -> None:
    """A bundle stays good when a later version's descriptions have new fields."""
    spec = builders.V2
    found = description_fingerprint(spec)
    spelled = replace(spec, decoder=replace(spec.decoder, ffn_widths=(), experts=None))
    assert description_fingerprint(spelled) == found
    assert description_fingerprint(replace(spec, decoder=replace(spec.decoder, ffn_widths=(48, 0)))) != found
    assert description_fingerprint(replace(spec, memory=spec.memory[:1])) != found


def test_tables_of_every_mode(bundles: dict[tuple[str, str], Path]) -> None:
    expected = OrtRunner(bundles["v2", "ort"]).logits(IDS)
    for mode in ("auto", "resident", "mapped"):
        np.testing.assert_array_equal(OrtRunner(bundles["v2", "ort"], tables=mode).logits(IDS), expected)


def test_resident_tables_are_read_once(bundles: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    """What happens to the file afterwards shows in a mapped table and not in a resident one."""
    bundle = tmp_path / "bundle"
    shutil.copytree(bundles["v1", "ort"], bundle)
    resident, mapped = (OrtRunner(bundle, tables=mode) for mode in ("resident", "mapped"))
    expected = mapped.logits(IDS)
    table = Checkpoint.open(bundle).info("tables.t.values")
    with open(table.file, "r+b") as stream:
        stream.seek(table.offset)
        stream.write(bytes(table.nbytes))
    np.testing.assert_array_equal(resident.logits(IDS), expected)
    assert np.abs(mapped.logits(IDS) - expected).max() > TOLERANCE


def test_modes_that_are_none(bundles: dict[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="tables: expected one of auto, resident, mapped, found 'there'"):
        OrtRunner(bundles["v1", "ort"], tables="there")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("ultramem.tables", "there")
    with pytest.raises(Exception, match=r"ultramem\.tables .*expected auto, resident or mapped, found there"):
        options.register_custom_ops_library(str(ort_library()))
    monkeypatch.setenv("ULTRAMEM_TABLES", "nowhere")
    with pytest.raises(Exception, match="found nowhere"):
        onnxruntime.SessionOptions().register_custom_ops_library(str(ort_library()))
