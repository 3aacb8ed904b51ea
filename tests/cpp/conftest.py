"""The installed C++ library and programs (`make check-cpp` says where), and bundles for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tests import builders
from ultramem_deploy.converters.bundle import make_bundle
from ultramem_deploy.converters.onnx import export_onnx
from ultramem_deploy.spec import ModelSpec, TokenSpec

_SPECS = {
    "plain": builders.PLAIN,
    "v1": builders.V1,
    "v2": builders.V2,
    "memory-plus": builders.PLUS,
    "expanded": builders.EXPANDED,
}
# GenAI takes token 0 for the end of text where a model names none.
MODELS: dict[str, ModelSpec] = {name: replace(spec, tokens=TokenSpec(eos=(60,))) for name, spec in _SPECS.items()}
TEXT = "the memory table holds a value for every slot, and the query finds it."
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}. "
Bundled = Callable[..., Path]


@pytest.fixture(scope="session")
def cpp() -> Path:
    """The prefix that `make cpp` installs to."""
    prefix = os.environ.get("ULTRAMEM_CPP")
    if not prefix:
        pytest.skip("the C++ library is tested by `make check-cpp`")
    return Path(prefix)


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Bundled:
    """(model, target, with_plugins) -> the bundle's directory."""

    @cache
    def make(name: str, target: str = "ort", with_plugins: bool = True) -> Path:
        folder = tmp_path_factory.mktemp(name)
        checkpoint = builders.write_checkpoint(folder / "checkpoint", MODELS[name])
        # What a random model says is mostly no UTF-8, which every tokenizer shows in its own way: ASCII to compare.
        builders.write_byte_tokenizer(checkpoint, TEXT if name == "v1" else f"{TEXT} café 漢字")
        if name == "v1":
            (checkpoint / "chat_template.jinja").write_text(CHAT_TEMPLATE)
        export_onnx(checkpoint, folder / "onnx", target=target)
        make_bundle(folder / "onnx", folder / "bundle", with_plugins=with_plugins)
        return folder / "bundle"

    return make
