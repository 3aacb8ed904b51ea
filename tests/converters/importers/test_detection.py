"""Which importer a source gets, and what is said when none fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ultramem_deploy.converters.importers import choose_importer, import_checkpoint, open_source, plan_import
from ultramem_deploy.errors import ConfigError, InputError

from .sources import CONFIGS, family_config, llama_shapes, random_tensors, write_source


def config_only(directory: Path, config: dict[str, object]) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("family", CONFIGS)
def test_each_family_is_recognised(tmp_path: Path, family: str) -> None:
    source = open_source(config_only(tmp_path, family_config(family)))
    assert choose_importer(source).family == family


@pytest.mark.parametrize("family", CONFIGS)
def test_model_type_alone_is_enough(tmp_path: Path, family: str) -> None:
    source = open_source(config_only(tmp_path, family_config(family, architectures=...)))
    assert choose_importer(source).family == family


def test_unknown_architecture_names_what_was_found_and_what_is_supported(tmp_path: Path) -> None:
    config_only(tmp_path, {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]})
    with pytest.raises(InputError, match=r"GPTNeoXForCausalLM.*gpt_neox.*supported: .*llama.*olmo2.*gguf"):
        plan_import(tmp_path)


def test_near_miss_says_what_does_not_fit(tmp_path: Path) -> None:
    config_only(tmp_path, family_config("llama", architectures=["LlamaForSequenceClassification"]))
    with pytest.raises(InputError, match=r"only LlamaForCausalLM is supported, found .*SequenceClassification"):
        plan_import(tmp_path)


def test_an_unknown_architecture_is_told_what_comes_closest(llama: Callable[..., Path]) -> None:
    source = llama(model_type="somebodys", architectures=["SomebodysForCausalLM"])
    said = "unknown model: .*; llama comes closest: every key and tensor fits; convert with --from llama if it is one"
    with pytest.raises(InputError, match=said):
        plan_import(source)
    changes = {"model_type": "somebodys", "architectures": ["S"], "num_hidden_layers": ..., "num_hiden_layers": 3}
    config_only(source, family_config("llama", **changes))
    said = r"llama comes closest: .*'num_hiden_layers': unknown.*did you mean num_hidden_layers\?"
    with pytest.raises(InputError, match=said) as caught:
        plan_import(source)
    assert "\n" not in str(caught.value)


def test_tensors_decide_where_every_key_fits(llama: Callable[..., Path]) -> None:
    source = llama(model_type="somebodys", architectures=["S"])
    tensors = random_tensors(llama_shapes()) | {"model.layers.0.mlp.extra": np.ones(3, np.float32)}
    write_source(source, family_config("llama", model_type="somebodys", architectures=["S"]), tensors)
    with pytest.raises(InputError, match="its keys fit, its tensors do not: .*unexpected: 'model.layers.0.mlp.extra'"):
        plan_import(source)


def test_tensors_of_a_known_family_name_the_one_that_they_fit(llama: Callable[..., Path]) -> None:
    source = llama()
    tensors = random_tensors(llama_shapes()) | {"model.layers.0.mlp.extra": np.ones(3, np.float32)}
    write_source(source, family_config("llama"), tensors)
    said = "does not hold the model that its configuration describes: 1 tensor unexpected: .*; .* comes closest"
    with pytest.raises(InputError, match=said):
        plan_import(source)
    names = [f"model.layers.{layer}.self_attn.{side}_norm.weight" for layer in range(2) for side in "qk"]
    normed = {name: np.ones(8, np.float32) for name in names}
    write_source(source, family_config("llama", head_dim=8), random_tensors(llama_shapes()) | normed)
    with pytest.raises(InputError, match="every tensor fits qwen3: convert with --from qwen3 if it is one"):
        plan_import(source)


def test_contradicting_model_type_is_a_near_miss(tmp_path: Path) -> None:
    config_only(tmp_path, family_config("llama", model_type="granite"))
    with pytest.raises(InputError, match="LlamaForCausalLM goes with model_type llama, found 'granite'"):
        plan_import(tmp_path)


def test_family_overrides_detection_with_a_warning(llama: Callable[..., Path]) -> None:
    source = llama(architectures=["SomebodysForCausalLM"])
    with pytest.raises(InputError, match="Somebodys"):
        plan_import(source)
    plan = plan_import(source, family="llama")
    assert plan.family == "llama"
    assert any("Somebodys" in warning for warning in plan.warnings)


def test_unknown_family_lists_the_known_ones(llama: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"--from: expected one of ultramem, llama.*found 'lama'"):
        plan_import(llama(), family="lama")


def test_family_of_another_file_format_is_refused(llama: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"family gguf reads a \.gguf file"):
        plan_import(llama(), family="gguf")


def test_a_canonical_checkpoint_is_its_own_family(llama: Callable[..., Path], tmp_path: Path) -> None:
    source = llama()
    import_checkpoint(source, tmp_path / "first")
    plan = plan_import(tmp_path / "first")
    assert plan.family == "ultramem"
    assert plan.spec == plan_import(source).spec
    assert plan.spec.source_family == "llama"
    summary = import_checkpoint(tmp_path / "first", tmp_path / "second")
    assert summary["linked"] == 1


def test_a_canonical_config_with_a_newer_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="format_version"):
        plan_import(config_only(tmp_path, {"model_type": "ultramem", "format_version": 99}))


@pytest.mark.parametrize("what", ["nothing", "file", "empty"])
def test_paths_that_hold_no_model(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x"
    if what == "file":
        path.write_text("hello")
    elif what == "empty":
        path.mkdir()
    with pytest.raises(InputError, match="expected a model directory"):
        plan_import(path)


def test_several_gguf_files_must_be_named(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"2 \.gguf files \(a\.gguf, b\.gguf\); name the one"):
        plan_import(tmp_path)


def test_pickled_weights_are_refused_with_advice(tmp_path: Path) -> None:
    config_only(tmp_path, family_config("llama"))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"pickled weights \(pytorch_model\.bin\).*save_pretrained"):
        plan_import(tmp_path)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "olmo", "olmo2"])
def test_another_familys_tensors_do_not_pass(tmp_path: Path, family: str) -> None:
    write_source(tmp_path, family_config(family, head_dim=8), random_tensors(llama_shapes()))
    with pytest.raises(InputError, match=r"tensors (missing|unexpected)"):
        plan_import(tmp_path)
