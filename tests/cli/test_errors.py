"""Bad input is one line and an exit code; a bug of ours keeps its traceback."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from tests.cli.conftest import Chain, Invoke
from ultramem_deploy import pipeline
from ultramem_deploy.errors import InputError


def assert_one_line(result: Result, said: str, code: int = 2) -> None:
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert said in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("arguments, said", [
    (["nonsense"], "No such command 'nonsense'"),
    (["convert"], "Missing argument 'SRC'"),
    (["convert", "{here}/absent", "{out}"], "does not exist"),
    (["convert", "{source}", "{source}"], "must stay as it is"),
    (["convert", "{source}", "{out}", "--dtype", "int3"], "'int3' is not one of"),
    (["convert", "{source}", "{out}", "--from", "gpt9"], "expected one of ultramem, llama"),
    (["convert", "{source}", "{out}", "--jobs", "0"], "--jobs"),
    (["convert", "{here}", "{out}"], "holds neither config.json nor a .gguf file"),
    (["convert", "{source}", "{file}"], "not a directory"),
    (["upcycle", "{convert}", "{out}", "--knum", "many"], "'many' is not a valid integer"),
    (["upcycle", "{convert}", "{out}", "--paths", "5:1"], "--paths: 5:1"),
    (["upcycle", "{convert}", "{out}", "--method", "magic"], "'magic' is not"),
    (["upcycle", "{source}", "{out}"], "not a canonical checkpoint"),
    (["heal", "{convert}", "{out}"], "no memory layers"),
    (["heal", "{upcycle}", "{out}", "--text", "{file}", "--length", "16"], "too few"),
    (["heal", "{upcycle}", "{out}", "--steps", "0"], "--steps"),
    (["heal", "{upcycle}", "{out}", "--train", "dense"], "'dense' is not one of 'memory', 'keys', 'values', 'all'"),
    (["fold", "{convert}", "{out}"], "no memory layers"),
    (["fold", "{upcycle}", "{out}", "--mode", "shrink"], "'shrink' is not"),
    (["export", "{source}", "{out}"], "not a canonical checkpoint"),
    (["export", "{convert}", "{out}", "--target", "phone"], "'phone' is not one of 'ort', 'portable'"),
    (["inspect", "{file}"], "expected a model directory"),
    (["fold", "{file}", "{out}"], "file: expected a model directory with config.json, found a file"),
    (["diff", "{convert}", "{file}"], "file: expected a model directory with config.json, found a file"),
    (["patch", "{upcycle}", "{out}", "--delta", "{file}"], "file: expected a model directory with delta.json, found"),
    (["verify", "{convert}", "{convert}", "--tokens", "1"], "--tokens"),
    (["verify", "{convert}", "{convert}", "--runtime", "ort"], "no model.onnx"),
    (["generate", "{convert}", "--prompt", ""], "--prompt"),
    (["generate", "{convert}"], "Missing option '--prompt'"),
    (["generate", "{convert}", "--prompt", "a", "--max-new-tokens", "0"], "--max-new-tokens"),
    (["generate", "{convert}", "--prompt", "é" * 999], "positions; shorten it"),
    (["heal", "{upcycle}", "{out}", "--seed", str(2**63)], f"--seed: expected 0..{2**63 - 1}, found {2**63}"),
    (["heal", "{upcycle}", "{out}", "--length", "9", "--distill", "{convert}", "--retain", "{file}"], "--retain: file"),
])  # fmt: skip
def test_bad_input(um: Invoke, chain: Chain, tmp_path: Path, arguments: list[str], said: str) -> None:
    file = tmp_path / "file"
    file.write_text("short")
    places = {**chain.paths, "here": tmp_path, "out": tmp_path / "out", "file": file}
    assert_one_line(um(*(argument.format(**places) for argument in arguments)), said)
    assert not (tmp_path / "out").exists()


def test_bare_command_prints_help(um: Invoke) -> None:
    result = um()
    assert result.exit_code == 2
    assert "generate" in result.stderr


def _raising(error: BaseException) -> Any:
    def convert(*_: Any, **__: Any) -> Any:
        raise error

    return convert


def test_messages_are_collapsed_to_one_line(um: Invoke, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "convert", _raising(InputError("first\n  second\r\nthird")))
    assert_one_line(um("convert", source, "out"), "first second third")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_the_machines_limits_are_one_line(
    um: Invoke, source: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(pipeline, "convert", _raising(OSError(number, "it cannot", "/somewhere/file")))
    assert_one_line(um("convert", source, "out"), "/somewhere/file: it cannot")


def test_links_that_lead_nowhere_are_one_line(um: Invoke, source: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for out in (tmp_path / "loop", tmp_path / "loop" / "out"):
        assert_one_line(um("convert", source, out), "oop")


def _torch_out_of_memory() -> RuntimeError:
    """What PyTorch says where it cannot allocate: 2**56 bytes are more than any machine has."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 56, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 75 GiB"),
        _torch_out_of_memory(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 75 GiB"),
    ],
)
def test_too_little_memory_is_one_line(
    um: Invoke, source: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(pipeline, "convert", _raising(error))
    assert_one_line(um("convert", source, "out"), "out of memory")


@pytest.mark.parametrize("error", [RuntimeError("a bug"), FileNotFoundError(errno.ENOENT, "none"), KeyError("x")])
def test_a_bug_keeps_its_traceback(um: Invoke, source: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(pipeline, "convert", _raising(error))
    assert um("convert", source, "out").exception is error


def test_an_interruption_says_how_to_continue(um: Invoke, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "convert", _raising(KeyboardInterrupt()))
    result = um("convert", source, "out")
    assert (result.exit_code, result.stderr) == (130, "interrupted: run the same command again to continue\n")
