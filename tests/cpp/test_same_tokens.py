"""The same greedy tokens from the C++ library, our Python runtime, PyTorch and ONNX Runtime GenAI."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.cpp.conftest import MODELS, Bundled
from ultramem_deploy.runtime.generation import greedy
from ultramem_deploy.runtime.opening import open_runner
from ultramem_deploy.runtime.tokenizer import Tokenizer

PROMPT, NEW, END = [20, 21, 22, 23], 24, 60


def minimal(cpp: Path, bundle: Path, prompt: str, new: int) -> tuple[str, dict[str, float]]:
    """What `minimal` printed, and its last line."""
    command = [cpp / "bin" / "minimal", bundle, prompt, str(new)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    text, last = result.stdout.rstrip("\n").rsplit("\n", 1)
    return text, json.loads(last)


def python_tokens(bundle: Path, runtime: str) -> list[int]:
    return list(greedy(open_runner(bundle, runtime), PROMPT, NEW, (END,)))


def genai_tokens(bundle: Path) -> list[int]:
    og = pytest.importorskip("onnxruntime_genai")
    model = og.Model(str(bundle))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(PROMPT) + NEW, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(PROMPT)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(PROMPT) :] if token != END]


@pytest.mark.parametrize("target", ["ort", "portable"])
@pytest.mark.parametrize("model", list(MODELS))
def test_everything_agrees(cpp: Path, bundled: Bundled, model: str, target: str) -> None:
    bundle = bundled(model, target)
    expected = python_tokens(bundle, "torch")
    assert python_tokens(bundle, "ort") == expected
    assert len(expected) > 4
    text, metrics = minimal(cpp, bundle, ",".join(map(str, PROMPT)), NEW)
    assert [int(part) for part in text.split(",")] == expected
    assert genai_tokens(bundle) == expected
    assert set(metrics) == {"tokens_per_second", "time_to_first_token_ms", "rss_mb"} and min(metrics.values()) > 0


def test_genai_runs_a_bundle_without_the_library(bundled: Bundled, cpp: Path) -> None:
    """GenAI takes the operators' function bodies; ours takes the library installed beside it."""
    bundle = bundled("v2", with_plugins=False)
    expected = python_tokens(bundle, "torch")
    assert genai_tokens(bundle) == expected
    assert minimal(cpp, bundle, ",".join(map(str, PROMPT)), NEW)[0] == ",".join(map(str, expected))


def test_text_in_text_out(cpp: Path, bundled: Bundled) -> None:
    """Onnxruntime-extensions' tokenizer gives the ids and the text that Hugging Face's gives."""
    bundle = bundled("v1")
    prompt = "the query finds a value"
    tokenizer = Tokenizer(bundle)
    runner = open_runner(bundle, "torch")
    expected = list(greedy(runner, tokenizer.encode(prompt), NEW, (END,)))
    assert minimal(cpp, bundle, prompt, NEW)[0] == tokenizer.decode(expected)
