"""DeepSeek-V3: latent attention, a few dense blocks, then experts chosen by sigmoid scores within groups."""

from __future__ import annotations

import dataclasses
from typing import Any

from ultramem_deploy.spec import LatentSpec, ModelSpec

from .config_reader import ConfigReader, Key
from .experts import EXPERTS_IGNORED, read_experts
from .huggingface import ATTENTION_BIAS, RMS_KEYS, HuggingFaceImporter
from .matching import NameMap
from .rope_config import mscale

_EXPERTS = {
    "n_routed_experts": Key(("count",)),
    "num_experts_per_tok": Key(("top_k",)),
    "moe_intermediate_size": Key(("width",)),
    "n_group": Key(("groups",)),
    "topk_group": Key(("top_groups",)),
    "norm_topk_prob": Key(("normalise",), bool, True),
    "routed_scaling_factor": Key(("scale",), float),
}
_LATENT = {
    "kv_lora_rank": Key(("kv_rank",)),
    "q_lora_rank": Key(("query_rank",), default=None),
    "qk_rope_head_dim": Key(("rope_dim",)),
    "v_head_dim": Key(("value_dim",)),
}
_PLAIN = Key((), int)
_LATENT_NORM_EPS = 1e-6  # transformers gives these norms their default, whatever rms_norm_eps says
_SHARED = "model.layers.{i}.mlp.shared_expert"


class DeepseekV3Importer(HuggingFaceImporter):
    """Head sizes come from the latent attention's own keys."""

    def quirks(self, reader: ConfigReader, fields: dict[str, Any]) -> None:
        latent = LatentSpec(norm_eps=_LATENT_NORM_EPS, **reader.fields(_LATENT))
        plain = reader.number("qk_nope_head_dim", _PLAIN)
        reader.raw("qk_head_dim")
        fields["latent"], fields["num_kv_heads"] = latent, fields["num_heads"]
        fields["head_dim"] = plain + latent.rope_dim
        interleaved = reader.number("rope_interleave", Key((), bool, True))
        fields["rope"] = dataclasses.replace(fields["rope"], interleaved=interleaved)
        fields["attention_scale"] = fields["head_dim"] ** -0.5 * _strength(reader) ** 2
        fields["experts"] = self._experts(reader, fields["num_layers"])

    def _experts(self, reader: ConfigReader, num_layers: int) -> Any:
        dense = reader.raw("first_k_dense_replace", 3)
        if isinstance(dense, bool) or not isinstance(dense, int) or dense < 0:
            reader.problem(f"first_k_dense_replace: expected a whole number from 0, found {dense!r}")
            dense = 0
        shared = reader.number("n_shared_experts", _PLAIN) * reader.number("moe_intermediate_size", _PLAIN)
        blocks = tuple(range(dense, num_layers))
        more = {"scoring": "sigmoid", "selection_bias": True, "shared_width": shared}
        return read_experts(reader, _EXPERTS, blocks, **more)

    def ignorable(self, spec: ModelSpec) -> tuple[str, ...]:
        """Blocks behind the last one predict further tokens; the decoder does not run them."""
        return tuple(rf"model\.layers\.{spec.decoder.num_layers + extra}\..*" for extra in range(4))


def _strength(reader: ConfigReader) -> float:
    """What YaRN multiplies scores by (on each side) besides cosines and sines; 1 without `mscale_all_dim`."""
    rope = reader.raw("rope_parameters") or reader.raw("rope_scaling") or {}
    if not isinstance(rope, dict) or (rope.get("rope_type") or rope.get("type") or "default") == "default":
        return 1.0
    weight, factor = rope.get("mscale_all_dim") or 0, rope.get("factor") or 1
    numbers = isinstance(weight, (int, float)) and isinstance(factor, (int, float))
    return mscale(factor, weight) if weight and numbers else 1.0


DEEPSEEK_V3 = DeepseekV3Importer(
    family="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    config_map={**RMS_KEYS, "attention_bias": ATTENTION_BIAS},
    fixed={"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",), "moe_layer_freq": (1,)},
    ignored=EXPERTS_IGNORED | {"num_nextn_predict_layers", "num_mtp_layers", "seq_aux", "aux_loss_alpha"},
    names=NameMap(
        (f"{_SHARED}.{part}_proj.weight", f"{_SHARED}s.{part}_proj.weight") for part in ("gate", "up", "down")
    ),
)
