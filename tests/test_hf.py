"""Canonical checkpoints in transformers: load, generate, train, save, and read again with our own verbs."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ultramem_deploy as um
from tests import builders as b
from tests.conftest import Written
from ultramem_deploy.errors import ConfigError, InputError
from ultramem_deploy.model import load
from ultramem_deploy.spec import ModelSpec, TableSpec, TokenSpec

transformers = pytest.importorskip("transformers")
hf = pytest.importorskip("ultramem_deploy.hf")

IDS = torch.arange(24).view(2, 12) * 5 % b.DECODER.vocab_size
TIED = replace(b.V1, decoder=b.decoder(tie_embeddings=True))
GEMMA = replace(
    b.V2,
    decoder=b.decoder(
        sliding_window=4, sliding_layers=(0,), sliding_rope=replace(b.DECODER.rope, theta=1e5), norm_position="both",
        embedding_scale=5.5,
    ),
)  # fmt: skip
SPECS = {
    "v1": b.V1, "v2": b.V2, "memory+": b.PLUS, "expanded": b.EXPANDED, "routed": b.ROUTED, "signed": b.SIGNED,
    "tied": TIED, "sliding": GEMMA, "dense": b.PLAIN,
}  # fmt: skip


def opened(path: Path, **options: object) -> torch.nn.Module:
    model: torch.nn.Module = transformers.AutoModelForCausalLM.from_pretrained(path, **options)
    return model


@torch.no_grad()
def logits(model: torch.nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Without gradients our kernels run, as in our own model: equal to the bit."""
    found: torch.Tensor = model(ids).logits
    return found


@pytest.mark.parametrize("kind", SPECS)
def test_logits_are_those_of_our_model(written: Written, kind: str) -> None:
    path = written(SPECS[kind])
    model, expected = opened(path), load(path)(IDS)
    assert type(model).__name__ == "UltraMemForCausalLM" and not model.training
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, expected)
        assert torch.equal(model(IDS, logits_to_keep=1).logits, load(path)(IDS, logits_to_keep=1))


@pytest.mark.parametrize("kind", SPECS)
def test_a_saved_model_is_a_canonical_checkpoint(written: Written, tmp_path: Path, kind: str) -> None:
    path = written(SPECS[kind])
    opened(path).save_pretrained(tmp_path / "saved")
    assert ModelSpec.load(tmp_path / "saved") == SPECS[kind]
    assert torch.equal(load(tmp_path / "saved")(IDS), load(path)(IDS))
    facts = um.inspect(tmp_path / "saved")
    assert facts["family"] == "ultramem" and facts["parameters_total"] == um.inspect(path)["parameters_total"]
    um.convert(tmp_path / "saved", tmp_path / "converted")
    um.export(tmp_path / "converted", tmp_path / "onnx")
    found = um.verify(tmp_path / "converted", tmp_path / "onnx", tokens=40)
    assert found["max_abs_logit_error"] < 1e-3


def test_a_shard_called_model_is_no_whole_checkpoint(tmp_path: Path) -> None:
    """`convert` links transformers' model.safetensors; what upcycling adds lies beside it, in the index."""
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    b.write_tokenizer(tmp_path / "llama")
    um.convert(tmp_path / "llama", tmp_path / "dense")
    um.upcycle(tmp_path / "dense", tmp_path / "new", knum=8, key_width=8, value_width=16, top_m=4)
    text = b.write_text(tmp_path / "text.txt")
    um.heal(tmp_path / "new", tmp_path / "upcycled", text=text, steps=1, batch=2, length=16)
    assert (tmp_path / "upcycled" / "model.safetensors").is_file()
    for kind in (transformers.AutoModelForCausalLM, hf.UltraMemForCausalLM):
        model = kind.from_pretrained(tmp_path / "upcycled")
        ours = load(tmp_path / "upcycled")
        assert all(torch.equal(value, ours.state_dict()[name]) for name, value in model.state_dict().items())
    _, info = hf.UltraMemForCausalLM.from_pretrained(tmp_path / "upcycled", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    (tmp_path / "upcycled" / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match=r"tensor memory\.0\.col_keys \(\d+ in all\) is missing"):
        opened(tmp_path / "upcycled")


def test_shards_of_a_saved_model(written: Written, tmp_path: Path) -> None:
    path = written(b.V1)
    opened(path).save_pretrained(tmp_path / "saved", max_shard_size="8KB")
    assert (tmp_path / "saved" / "model.safetensors.index.json").is_file()
    assert torch.equal(load(tmp_path / "saved")(IDS), load(path)(IDS))
    assert torch.equal(logits(opened(tmp_path / "saved")), load(path)(IDS))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_stored_dtype_is_kept(written: Written, tmp_path: Path, dtype: str) -> None:
    path = written(b.V1, dtype=dtype)
    model = opened(path, dtype="auto")
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    model.save_pretrained(tmp_path / "saved")
    assert um.inspect(tmp_path / "saved")["dtype"] == dtype
    assert {p.dtype for p in opened(path, dtype=torch.float32).parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["v1", "v2", "tied", "sliding", "signed"])
def test_generation_with_a_cache_is_generation_without(written: Written, kind: str) -> None:
    """Greedy tokens, a padded batch, beams: the cache holds what a whole pass would compute."""
    model = opened(written(SPECS[kind]))
    ids, mask = IDS.clone(), torch.ones_like(IDS)
    ids[0, :5], mask[0, :5] = 0, 0
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with_cache = model.generate(ids, attention_mask=mask, use_cache=True, **options)
    assert torch.equal(with_cache, model.generate(ids, attention_mask=mask, use_cache=False, **options))
    beams = {**options, "num_beams": 3}
    assert torch.equal(
        model.generate(ids, attention_mask=mask, **beams),
        model.generate(ids, attention_mask=mask, use_cache=False, **beams),
    )
    alone = model.generate(ids[:1, 5:], attention_mask=mask[:1, 5:], **options)
    assert torch.equal(with_cache[0, 5:], alone[0]), "padding changes nothing"


def test_a_cache_is_handed_on(written: Written) -> None:
    path = written(b.V1)
    model, expected = opened(path), load(path)(IDS)
    with torch.no_grad():
        first = model(IDS[:, :7], use_cache=True)
        second = model(IDS[:, 7:], past_key_values=first.past_key_values)
    assert second.past_key_values.get_seq_length() == IDS.shape[1]
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), expected, atol=1e-4, rtol=0)
    assert model(IDS).past_key_values is None


@pytest.mark.parametrize("kind", ["v1", "v2", "memory+", "signed", "tied"])
def test_a_training_step(written: Written, kind: str) -> None:
    """The loss is transformers' shifted cross-entropy; values, keys and dense weights get gradients, and it falls."""
    model = opened(written(SPECS[kind])).train()
    labels = IDS.clone()
    labels[0, :4] = -100
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    out = model(IDS, labels=labels)
    expected = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].detach().double().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    out.loss.backward()
    for name in ("tables.t.values", "memory.0.col_keys", "model.embed_tokens.weight"):
        assert model.get_parameter(name).grad.abs().max() > 0, name
    optimizer.step()
    after = model(IDS, labels=labels).loss.item()
    assert after < out.loss.item()
    counted = int((labels[:, 1:] >= 0).sum())
    summed = model(IDS, labels=labels, num_items_in_batch=10).loss.item()
    assert summed == pytest.approx(after * counted / 10, rel=1e-5)


@pytest.mark.parametrize("when", ["forward", "eval", "save"])
def test_factors_follow_the_core_in_training_alone(written: Written, tmp_path: Path, when: str) -> None:
    model = opened(written(b.V1))
    layer = model.memory[0]
    before = layer.u.clone()
    with torch.no_grad():
        layer.core.copy_(torch.tensor([[3.0, 0.5], [0.2, 1.0]]))
    model(IDS)
    model.train().eval().save_pretrained(tmp_path / "saved")
    assert torch.equal(layer.u, before), "nothing was trained"
    model.train()(IDS)
    before, other = layer.u.clone(), layer.v.clone()
    with torch.no_grad():
        layer.core.copy_(torch.tensor([[0.3, 2.0], [1.0, 0.5]]))
    if when == "save":
        model.save_pretrained(tmp_path / "saved")
        layer = load(tmp_path / "saved").memory_layers[0]
    elif when == "eval":
        model.eval()
    else:
        model(IDS)
    core = layer.core.sum(0)[0].detach().double().numpy()
    left = np.linalg.svd(core)[0][:, 0]
    assert abs(float(left @ layer.u[0].double().numpy())) == pytest.approx(1, abs=1e-6)
    assert ((layer.u * before).sum(1) + (layer.v * other).sum(1) > 0).all(), "signed as before"


def test_trainer_and_its_checkpoint(written: Written, tmp_path: Path) -> None:
    """transformers' own Trainer, and what it saves."""
    pytest.importorskip("accelerate")
    model = opened(written(b.V1, tokenizer=True))
    examples = [{"input_ids": row, "labels": row} for row in IDS.repeat(8, 1)]
    arguments = transformers.TrainingArguments(
        tmp_path / "run", max_steps=20, learning_rate=1e-2, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        disable_tqdm=True, logging_strategy="no", save_strategy="no",
    )  # fmt: skip
    before = model(IDS, labels=IDS).loss.item()
    transformers.Trainer(model, arguments, train_dataset=examples).train()
    model.save_pretrained(tmp_path / "tuned")
    tuned = load(tmp_path / "tuned")(IDS)
    after = torch.nn.functional.cross_entropy(tuned[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    assert float(after) < before - 1


def test_the_tokenizer_travels(written: Written, tmp_path: Path) -> None:
    path = written(b.V1, tokenizer=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.save_pretrained(tmp_path / "saved")
    opened(path).save_pretrained(tmp_path / "saved")
    text = b.write_text(tmp_path / "text.txt")
    receipt = um.heal(tmp_path / "saved", tmp_path / "healed", text=text, steps=2, batch=2, length=16)
    assert len(receipt["losses"]) == 2
    assert tokenizer("memory holds")["input_ids"] == transformers.AutoTokenizer.from_pretrained(
        tmp_path / "saved"
    )("memory holds")["input_ids"]  # fmt: skip


@pytest.mark.parametrize("kind", ["v1", "tied"])
def test_embeddings_can_grow(written: Written, tmp_path: Path, kind: str) -> None:
    model = opened(written(SPECS[kind]))
    expected = logits(model)
    model.resize_token_embeddings(70, mean_resizing=False)
    assert logits(model).shape[-1] == 70
    # The head that grew is PyTorch's own layer, which sums in another order: float32 sums of 32 products near 1.
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(logits(model)[..., : b.DECODER.vocab_size], expected, **close)
    model.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(load(tmp_path / "saved")(IDS), logits(model), **close)


def test_a_copy_is_of_its_own(written: Written) -> None:
    model = opened(written(b.V1))
    other, before = copy.deepcopy(model), logits(model)
    with torch.no_grad():
        other.lm_head.weight.zero_()
    assert torch.equal(logits(model), before) and not logits(other).any()


def test_a_model_from_a_configuration(written: Written) -> None:
    config = transformers.AutoConfig.from_pretrained(written(replace(b.V1, tokens=TokenSpec(1, (2, 3), 0))))
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (32, 2, 61)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert all(p.isfinite().all() and p.abs().max() < 2 for p in model.parameters())
    assert sorted(model.memory[0].shuffle.tolist()) == list(range(144))
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (1, [2, 3])
    assert torch.isfinite(model(IDS).logits).all()


def test_refusals(written: Written, tmp_path: Path) -> None:
    path = written(b.V1)
    um.quantize(path, tmp_path / "int8", tables="int8")
    with pytest.raises(InputError, match="table 't' .int8.: transformers gets models from before `quantize`"):
        opened(tmp_path / "int8")
    with pytest.raises(InputError, match=r"attention_mask: expected \[B, S\], found .*leave cache_implementation out"):
        opened(path).generate(IDS, max_new_tokens=4, cache_implementation="static")
    with pytest.raises(InputError, match="input_ids: expected"):
        opened(path)(inputs_embeds=torch.zeros(1, 3, 32))
    with pytest.raises(InputError, match="describes no model"):
        _ = hf.UltraMemConfig().spec
    broken = b.V1.to_config() | {"tables": {"t": {"rows": 0, "value_width": 16}}}
    with pytest.raises(ConfigError, match="rows"):
        hf.UltraMemConfig(**broken)
    assert TableSpec(36, 16) == hf.UltraMemConfig(**b.V1.to_config()).spec.tables["t"]
