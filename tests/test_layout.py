"""The tensors that a description asks for."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tests import builders as b
from tests.conftest import Written
from tests.model.test_memory import KINDS
from ultramem_deploy.errors import InputError
from ultramem_deploy.layout import TensorSpec, tensor_layout
from ultramem_deploy.model import UltraMemModel, load
from ultramem_deploy.spec import DecoderSpec, ExpertsSpec, LatentSpec, ModelSpec, NormSpec, RoutingSpec

DECODERS = {
    "plain": b.DECODER,
    "tied": b.decoder(tie_embeddings=True),
    "biases": b.decoder(qkv_bias=True, attention_output_bias=True, mlp_bias=True),
    "bias of the output projection": b.decoder(lm_head_bias=True),
    "a block without FFN": b.decoder(ffn_widths=(0, 20)),
    "a block without FFN, norms after": b.decoder(ffn_widths=(20, 0), norm_position="post", mlp_bias=True),
    "norm of heads": b.decoder(qk_norm="head"),
    "norm of projections, after": b.decoder(qk_norm="projection", norm_position="post"),
    "latent attention": b.decoder(num_kv_heads=4, latent=LatentSpec(12, 6, 10, 1e-6, 11), qkv_bias=True),
    "norms around": b.decoder(norm_position="both", norm=NormSpec("rms", 1e-5, unit_offset=True)),
    "norms around, no FFN": b.decoder(norm_position="both", ffn_widths=(0, 20)),
    "experts": b.decoder(experts=ExpertsSpec((1,), 4, 12, RoutingSpec(2, selection_bias=True), 6, True, (0,))),
    "norms without weights": b.decoder(norm=NormSpec("layer", 1e-5, affine=False)),
    "norms with bias": b.decoder(norm=NormSpec("layer", 1e-5, bias=True), qk_norm="head"),
}


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_decoder_layout_is_the_module(decoder: DecoderSpec) -> None:
    spec = ModelSpec(decoder)
    shapes = {name: tuple(p.shape) for name, p in UltraMemModel(spec).named_parameters()}
    assert shapes == {name: tensor.shape for name, tensor in tensor_layout(spec).items()}


def test_roles() -> None:
    layout = tensor_layout(b.V2)
    assert layout["model.norm.weight"] == TensorSpec((32,), "dense")
    assert layout["memory.0.row_keys"] == TensorSpec((2, 2, 12, 8), "memory")
    assert layout["memory.1.output.weight"] == TensorSpec((32, 16), "memory")
    assert layout["tables.t.pre_values"] == TensorSpec((60, 8), "table")
    buffers = {name for name, tensor in layout.items() if tensor.role == "buffer"}
    assert buffers == {f"memory.{index}.{name}" for index in (0, 1) for name in ("u", "v", "shuffle")}


@pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS)
def test_loading_what_was_written(spec: ModelSpec, written: Written) -> None:
    directory = written(spec)
    expected = b.random_tensors(spec)
    state = load(directory).state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name])


@pytest.mark.parametrize(("dtype", "expected"), [(None, "bfloat16"), ("float32", "float32"), ("float16", "float16")])
def test_loading_in_a_dtype(written: Written, dtype: str | None, expected: str) -> None:
    model = load(written(b.V1, dtype="bfloat16"), dtype=dtype)
    assert {str(t.dtype) for t in model.state_dict().values()} == {f"torch.{expected}", "torch.int64"}


def test_a_wrong_dtype_is_refused(written: Written) -> None:
    with pytest.raises(InputError, match="float32, bfloat16, float16, found 'int8'"):
        load(written(b.PLAIN), dtype="int8")


def test_a_tensor_of_another_shape_is_named(written: Written) -> None:
    directory = written(b.V1, changes={"memory.0.core": np.zeros((2, 2, 2, 3), np.float32)})
    with pytest.raises(InputError, match=r"0\.core: config\.json asks for shape \[2, 2, 2, 2\].*\[2, 2, 2, 3\]"):
        load(directory)


def test_a_tensor_too_many_is_named(written: Written) -> None:
    with pytest.raises(InputError, match=r"tensor memory\.0\.extra .* is not part of the model"):
        load(written(b.V1, changes={"memory.0.extra": np.zeros(1, np.float32)}))


def test_a_missing_tensor_is_named(written: Written) -> None:
    directory = written(b.V1)
    untied = replace(b.V1, decoder=b.decoder(attention_output_bias=True))
    (directory / "config.json").unlink()
    (directory / "config.json").write_text(json.dumps(untied.to_config()))
    with pytest.raises(InputError, match=r"no tensor 'model\.layers\.0\.self_attn\.o_proj\.bias"):
        load(directory)
