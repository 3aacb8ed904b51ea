"""Keys of Hugging Face configurations that do not change what a dense decoder computes, and those that may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ACTIVATIONS: dict[str, str] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}

FIXED_KEYS: Mapping[str, tuple[Any, ...]] = {
    "pretraining_tp": (1, None),
    "rope_interleaved": (False, None),
    "partial_rotary_factor": (1.0, None),
    "use_mrope": (False, None),
    "attention_multiplier": (1.0, None),
    "embedding_multiplier": (1.0, None),
    "residual_multiplier": (1.0, None),
    "logits_scaling": (1.0, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "quantization_config": (None,),
    "per_layer_config": (None, {}),
    "pruned_heads": (None, {}),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "tie_encoder_decoder": (False, None),
    "chunk_size_feed_forward": (0, None),
}
"""Keys that change the mathematics, and the values with which they do not."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BOOKKEEPING = _words(
    """
    architectures model_type transformers_version transformers.js_config auto_map custom_pipelines _commit_hash
    _name_or_path name_or_path _model_name_or_path dtype torch_dtype tokenizer_class prefix task_specific_params
    finetuning_task is_llama_config unsloth_fixed unsloth_version problem_type id2label label2id num_labels
    """
)
_TRAINING = _words(
    """
    initializer_range attention_dropout attention_probs_dropout_prob hidden_dropout resid_pdrop embd_pdrop
    classifier_dropout gradient_checkpointing
    """
)
_EXECUTION = _words(
    """
    use_cache return_dict output_attentions output_hidden_states output_scores return_dict_in_generate torchscript
    use_bfloat16 is_decoder cross_attention_hidden_size sep_token_id unk_token_id decoder_start_token_id tf_legacy_loss
    attn_implementation _attn_implementation _attn_implementation_autoset use_flash_attn use_flash_attention_2
    """
)
_GENERATION = _words(
    """
    max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    """
)
IGNORED_KEYS = _BOOKKEEPING | _TRAINING | _EXECUTION | _GENERATION
"""Keys that say nothing about the function of the weights: how a model was made, trained, run or sampled from."""
