"""Dense weights as MatMulNBits codes: ONNX Runtime's own quantizer, decoded in PyTorch, multiplied in ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import builders as b
from tests.conftest import Written
from tests.converters.test_fold import arrays
from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.errors import InputError
from ultramem_deploy.inspection import inspect
from ultramem_deploy.model import load
from ultramem_deploy.pipeline import export, fold, generate, heal, quantize, verify
from ultramem_deploy.planning import parameter_counts
from ultramem_deploy.spec import ModelSpec

WIDE = b.decoder(intermediate_size=64)
SPECS = {
    "v1": replace(b.V1, decoder=WIDE),
    "tied": replace(b.V1, decoder=replace(WIDE, tie_embeddings=True)),
    "biases": replace(b.V1, decoder=replace(WIDE, qkv_bias=True, mlp_bias=True, lm_head_bias=True)),
    "q/k norm, small heads": replace(b.V1, decoder=replace(WIDE, qk_norm="head", head_dim=8)),
    "no memory": replace(b.PLAIN, decoder=WIDE),
}


def decoded(codes: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """Weight float64 [out, in]: the layout of MatMulNBits as ONNX Runtime's documentation gives it."""
    numbers = codes.astype(np.int64)
    if bits == 4:
        numbers = np.stack([numbers % 16, numbers // 16], -1).reshape(*codes.shape[:2], -1)
    return ((numbers - 2 ** (bits - 1)) * scales[..., None].astype(np.float64)).reshape(len(codes), -1)


@pytest.mark.parametrize(("storage", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_weights_and_runtimes(spec: ModelSpec, storage: str, bits: int, written: Written, tmp_path: Path) -> None:
    source, out = written(spec), tmp_path / "out"
    receipt = quantize(source, out, dense=storage)["dense"]
    before, after, model = arrays(source), arrays(out), load(out)
    off = size = 0.0
    for name in (n.removesuffix("_scales") for n in after if n.endswith("weight_scales")):
        truth = before[name] if name in before else before["model.embed_tokens.weight"]
        found = decoded(after[name], after[f"{name}_scales"], bits)
        # Nearest of 2^bits levels of a block that spans twice its largest number; the quantizer's end is asymmetric.
        step = np.abs(truth.reshape(len(truth), -1, 32)).max(2, keepdims=True) / 2 ** (bits - 1)
        assert (np.abs(found - truth).reshape(len(truth), -1, 32) <= step * 1.01).all()
        np.testing.assert_allclose(model.get_parameter(name).numpy(), found, rtol=1e-6, atol=1e-7)
        off, size = off + ((found - truth) ** 2).sum(), size + (truth.astype(np.float64) ** 2).sum()
    assert receipt["relative_rms"] == pytest.approx((off / size) ** 0.5, rel=1e-4)
    assert parameter_counts(ModelSpec.load(out)) == parameter_counts(replace(spec, decoder=model.spec.decoder))
    export(out, tmp_path / "bundle")
    found = verify(out, tmp_path / "bundle", tokens=64)
    assert found["kl"] == 0.02 and "int8 activations" in found["tolerance"]
    both = verify(tmp_path / "bundle", tmp_path / "bundle", tokens=64, runtime="ort")
    assert both["tolerance"] is None and both["max_abs_logit_error"] < 1e-3


def test_the_graph_multiplies_codes(written: Written, tmp_path: Path) -> None:
    quantize(written(SPECS["v1"], tokenizer=True), tmp_path / "out", tables="int4", dense="int4")
    export(tmp_path / "out", tmp_path / "bundle")
    operators = inspect(tmp_path / "bundle")["onnx"]["operators"]
    # Two blocks: packed q, k, v, and o; gate, up, down; and the head.
    assert operators["com.microsoft::MatMulNBits"] == 2 * 5 + 1
    assert inspect(tmp_path / "out")["dtype"] == inspect(tmp_path / "out")["table_dtype"] == "int4"
    assert generate(tmp_path / "bundle", prompt="a table", max_new_tokens=3, runtime="ort")["ids"]
    assert generate(tmp_path / "out", prompt="a table", max_new_tokens=3)["ids"]
    fold(tmp_path / "out", tmp_path / "folded", mode="keys")
    verify(tmp_path / "out", tmp_path / "folded")


def test_a_head_of_their_own_for_tied_embeddings(written: Written, tmp_path: Path) -> None:
    source = written(SPECS["tied"], dtype="bfloat16")
    quantize(source, tmp_path / "out", dense="int8")
    embedding = Checkpoint.open(tmp_path / "out").torch("model.embed_tokens.weight")
    assert embedding.dtype == torch.bfloat16 and not ModelSpec.load(tmp_path / "out").decoder.tie_embeddings
    assert torch.equal(embedding, Checkpoint.open(source).torch("model.embed_tokens.weight"))


def test_refusals(written: Written, tmp_path: Path) -> None:
    source, out = written(SPECS["v1"], tokenizer=True), tmp_path / "out"
    with pytest.raises(InputError, match="nothing to do: give --tables"):
        quantize(source, out)
    with pytest.raises(InputError, match="--dense: expected one of int8, int4, found 'int2'"):
        quantize(source, out, dense="int2")
    with pytest.raises(InputError, match=r"down_proj.weight \[32, 48\]: rows must be a multiple of 32 numbers"):
        quantize(written(b.V1, "narrow"), out, dense="int4")
    quantize(source, tmp_path / "codes", dense="int4")
    with pytest.raises(InputError, match="the dense weights are quantised to int4 already"):
        quantize(tmp_path / "codes", out, dense="int8")
    with pytest.raises(InputError, match=r"heal: dense weights \(int4\): a quantised model cannot be trained"):
        heal(tmp_path / "codes", out, steps=1)
    with pytest.raises(InputError, match="--target portable: quantised dense weights are multiplied by"):
        export(tmp_path / "codes", out, target="portable")
    assert not out.exists()
