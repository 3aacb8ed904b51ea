"""What Qwen2 and Qwen3 share: which blocks look through a sliding window."""

from __future__ import annotations

from typing import Any

from ultramem_deploy.checkpoint.header import shown

from .config_reader import ConfigReader, Key
from .huggingface import RMS_KEYS, HuggingFaceImporter

_FULL, _SLIDING = "full_attention", "sliding_attention"
QWEN_KEYS = {
    **RMS_KEYS,
    "num_key_value_heads": Key(("num_kv_heads",)),  # left out, it would mean 32
}
_USE_WINDOW, _WINDOW = Key((), bool, False), Key((), default=None)


class QwenImporter(HuggingFaceImporter):
    """`layer_types` names the blocks that slide; older files give `max_window_layers`, the first block that does."""

    def quirks(self, reader: ConfigReader, fields: dict[str, Any]) -> None:
        used = reader.number("use_sliding_window", _USE_WINDOW)
        reader.raw("sliding_window")
        # Where no window is used, files hold null, 0 or any number.
        fields["sliding_window"] = reader.number("sliding_window", _WINDOW) if used else None
        sliding = layer_types(reader, fields["num_layers"])
        first = reader.raw("max_window_layers", 28)
        if sliding is None:
            sliding = _from_first(reader, first, fields["num_layers"]) if used and fields["sliding_window"] else ()
        if sliding and not (used and fields["sliding_window"]):
            reader.problem("layer_types: names sliding blocks, but use_sliding_window is false or sliding_window null")
        fields["sliding_layers"] = sliding
        fields["sliding_window"] = fields["sliding_window"] if sliding else None


def layer_types(reader: ConfigReader, num_layers: int) -> tuple[int, ...] | None:
    """The sliding blocks that the key `layer_types` names, None where it is absent; problems go to the reader."""
    kinds = reader.raw("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or any(kind not in (_FULL, _SLIDING) for kind in kinds):
        reader.problem(f"layer_types: expected a list of {_FULL} and {_SLIDING}, found {shown(kinds)}")
        return ()
    if len(kinds) != num_layers:
        reader.problem(f"layer_types: expected {num_layers} entries (num_hidden_layers), found {len(kinds)}")
        return ()
    return tuple(index for index, kind in enumerate(kinds) if kind == _SLIDING)


def _from_first(reader: ConfigReader, first: Any, num_layers: int) -> tuple[int, ...]:
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        reader.problem(f"max_window_layers: expected a whole number from 0, found {shown(first)}")
        return ()
    return tuple(range(first, num_layers))
