"""What `verify` leaves in an artifact, and what `build` makes of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import builders as b
from tests.conftest import Written
from ultramem_deploy.checkpoint import source_record
from ultramem_deploy.errors import CheckFailed
from ultramem_deploy.pipeline import build, export, verify
from ultramem_deploy.verdict import VERDICT_NAME, refuse_failed

BUILD = {"backend": "tensorrt-rtx", "shapes": "1x1,1x8,2x16"}


@pytest.fixture
def exported(written: Written, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint, and a bundle of another one with a changed output projection."""
    head = b.random_tensors(b.PLAIN)["lm_head.weight"] + 0.5
    export(written(b.PLAIN, "other", changes={"lm_head.weight": head}), tmp_path / "bundle")
    return written(b.PLAIN, "source"), tmp_path / "bundle"


def test_no_engine_of_an_export_whose_verify_failed(exported: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install tensorrt-rtx-cu13")
    source, bundle = exported
    with pytest.raises(CheckFailed):
        verify(source, bundle, tokens=8)
    with pytest.raises(CheckFailed, match=r"bundle: its last verify failed \(bundle differs from source: max abs"):
        build(bundle, tmp_path / "tiny.engine", **BUILD)
    assert not list(tmp_path.glob("tiny*"))
    verify(source, bundle, tokens=8, max_abs=1e9, kl=1e9)
    assert build(bundle, tmp_path / "tiny.engine", **BUILD)["engine_bytes"] > 0
    # The bundle that the engine was built from counts as well.
    verify(source, tmp_path / "tiny.model", tokens=8, check=False)
    with pytest.raises(CheckFailed, match=r"tiny\.model: its last verify failed"):
        build(bundle, tmp_path / "tiny.engine", **BUILD)


def test_an_artifact_made_again_is_another(exported: tuple[Path, Path]) -> None:
    source, bundle = exported
    verify(source, bundle, tokens=8, check=False)
    kept = (bundle / VERDICT_NAME).read_bytes()
    with pytest.raises(CheckFailed):
        refuse_failed(bundle)
    shutil.rmtree(bundle)
    export(source, bundle)
    refuse_failed(bundle)
    (bundle / VERDICT_NAME).write_bytes(kept)  # a verdict on what was there before
    refuse_failed(bundle)
    (bundle / VERDICT_NAME).write_text("not JSON")
    refuse_failed(bundle)


def test_the_note_is_no_part_of_the_artifact(exported: tuple[Path, Path]) -> None:
    source, bundle = exported
    before = source_record(bundle)
    verify(source, bundle, tokens=8, check=False)
    assert source_record(bundle) == before


def test_foreign_directories_are_left_alone(written: Written, tmp_path: Path) -> None:
    source = written(b.PLAIN, "source")
    foreign = Path(shutil.copytree(source, tmp_path / "foreign"))
    (foreign / "provenance.json").unlink()
    verify(source, foreign, tokens=8)
    assert not (foreign / VERDICT_NAME).exists()
