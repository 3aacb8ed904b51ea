"""GGUF files of the llama architecture, against transformers' own reading of the same file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.converters.importers import import_checkpoint, plan_import
from ultramem_deploy.converters.importers.gguf import NAMES, unpermuted
from ultramem_deploy.errors import ConfigError, InputError
from ultramem_deploy.spec import TokenSpec

from .sources import llama_shapes

gguf = pytest.importorskip("gguf")
Q4_1, Q8_0 = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0
QUANTISED = {"self_attn.q_proj": Q4_1, "self_attn.k_proj": Q8_0, "mlp.up_proj": Q4_1, "embed_tokens": Q8_0}


def permuted(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """What llama.cpp's converter does to query and key projections."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path, tied: bool = True, add: dict[str, Any] | None = None, drop: str = "", arch: str = "llama"
) -> Path:
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(64)
    writer.add_eos_token_id(2)
    for key, value in (add or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    generator = np.random.default_rng(0)
    for name, shape in llama_shapes(tied).items():
        if name != drop:
            noise = generator.standard_normal(shape, dtype=np.float32)
            _add(writer, name, 1 + 0.2 * noise if len(shape) == 1 else 0.2 * noise)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, name: str, array: np.ndarray[Any, Any]) -> None:
    heads = 4 if "q_proj" in name else 2 if "k_proj" in name else 0
    array = permuted(array, heads) if heads else array
    kind = next((kind for part, kind in QUANTISED.items() if part in name), None)
    if kind is None or array.shape[-1] % 32:
        writer.add_tensor(NAMES.source(name), array)
    else:
        writer.add_tensor(NAMES.source(name), gguf.quants.quantize(array, kind), raw_dtype=kind)


def test_permutation_is_undone() -> None:
    rows = np.arange(48)
    assert np.array_equal(permuted(rows, 3)[unpermuted(3, 48)], rows)


def test_plan(tmp_path: Path) -> None:
    plan = plan_import(write_gguf(tmp_path / "m.gguf"))
    assert plan.family == "gguf"
    assert plan.spec.tokens == TokenSpec(eos=(2,))
    assert plan.spec.decoder.tie_embeddings and plan.spec.decoder.head_dim == 8
    assert plan.warnings == ["the file holds no tokenizer; put one beside the converted model"]
    assert plan_import(tmp_path).spec == plan.spec, "a directory that holds one .gguf file will do"


@pytest.mark.parametrize("tied", [True, False])
def test_weights_and_logits_equal_transformers(tmp_path: Path, tied: bool) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from ultramem_deploy.model import load

    source = write_gguf(tmp_path / "m.gguf", tied)
    summary = import_checkpoint(source, tmp_path / "out")
    quantization = transformers.GgufConfig(gguf_file="m.gguf", dequantize=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32, quantization_config=quantization
    )
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert summary["tensors"] == len(checkpoint.tensors) == (20 if tied else 21)
    state = theirs.state_dict()
    for name in checkpoint.tensors:
        assert torch.equal(checkpoint.torch(name), state[name]), name
    ids = torch.arange(3, 23).view(2, 10)
    with torch.no_grad():
        assert (load(tmp_path / "out")(ids) - theirs(ids).logits).abs().max() < 1e-5


def test_rows_do_not_depend_on_where_a_chunk_starts(tmp_path: Path) -> None:
    for tensor in plan_import(write_gguf(tmp_path / "m.gguf")).tensors.values():
        whole = tensor.rows(0, tensor.shape[0])
        assert whole.shape == tensor.shape and whole.dtype == np.float32
        half = tensor.shape[0] // 2
        assert np.array_equal(np.concatenate((tensor.rows(0, half), tensor.rows(half, tensor.shape[0]))), whole)


def test_cast_on_the_way(tmp_path: Path) -> None:
    import_checkpoint(write_gguf(tmp_path / "m.gguf"), tmp_path / "out", dtype="bfloat16")
    assert {info.dtype for info in Checkpoint.open(tmp_path / "out").tensors.values()} == {"bfloat16"}


@pytest.mark.parametrize(
    ("add", "expected"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type: expected none or linear, found 'yarn'"),
        ({"llama.expert_count": 8}, "llama.expert_count: only 0 is supported, found 8"),
        ({"llama.attention.key_length": 16}, "llama.rope.dimension_count: only 16 is supported, found 8"),
        ({"llama.zebra": 1}, "'llama.zebra': unknown key"),
    ],
)
def test_unsupported_metadata(tmp_path: Path, add: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        plan_import(write_gguf(tmp_path / "m.gguf", add=add))


def test_other_architectures_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"general.architecture 'gemma3' is not supported, expected 'llama'"):
        plan_import(write_gguf(tmp_path / "m.gguf", arch="gemma3"))


@pytest.mark.parametrize("package", ["gguf", "transformers"])
def test_a_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", add={"tokenizer.ggml.model": "gpt2"})
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"needs {package}|needs the {package} package") as caught:
        import_checkpoint(path, tmp_path / "out")
    assert "pip install ultramem-deploy[hf]" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_missing_tensor(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", drop="model.layers.1.mlp.down_proj.weight")
    with pytest.raises(InputError, match=r"missing: 'blk.1.ffn_down.weight' \[32, 48\]"):
        plan_import(path)


@pytest.mark.parametrize("keep", [0, 3, 40, 700, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, keep: float) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if keep >= 1 else int(len(whole) * keep)])
    with pytest.raises(InputError, match=r"m\.gguf: not a whole GGUF file"):
        plan_import(path)


def test_llama3_divisors_are_recognised() -> None:
    from ultramem_deploy.converters.importers.gguf_rope import scaling_of
    from ultramem_deploy.model.rope import inverse_frequencies
    from ultramem_deploy.spec import RopeSpec

    rope = RopeSpec(500000.0, "llama3", 32.0, 1.0, 4.0, 8192)
    divisors = inverse_frequencies(RopeSpec(500000.0), 64) / inverse_frequencies(rope, 64)
    assert scaling_of(divisors, 500000.0, 64) == rope
    assert scaling_of(np.ones(32), 500000.0, 64) == RopeSpec(500000.0)
    assert scaling_of(divisors * 1.1, 500000.0, 64) is None
