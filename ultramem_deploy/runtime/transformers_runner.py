"""Running a source checkpoint in Hugging Face transformers: the independent truth that conversions are checked with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .base import Trace


class TransformersRunner:
    """`Runner` over `AutoModelForCausalLM` in float32; takes a Hugging Face directory or one with a GGUF file."""

    name = "transformers"
    spec = None

    def __init__(self, path: Path) -> None:
        try:
            import transformers
        except ImportError:
            raise InputError("a source checkpoint runs in transformers: pip install 'ultramem-deploy[hf]'") from None
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self.model = _load(path).eval()
        self.vocab_size = int(self.model.get_input_embeddings().weight.shape[0])

    def logits(self, input_ids: np.ndarray) -> np.ndarray:
        """Logits float32 [B, S, V]."""
        import torch

        with torch.no_grad():
            logits: np.ndarray = self.model(torch.from_numpy(input_ids)).logits.float().numpy()
        return logits

    def trace(self, input_ids: np.ndarray) -> Trace:
        return Trace(np.concatenate([self.logits(row[None]) for row in input_ids]))

    def session(self) -> TransformersSession:
        return TransformersSession(self.model)


class TransformersSession:
    def __init__(self, model: Any) -> None:
        self.model, self.cache = model, None

    def feed(self, input_ids: np.ndarray) -> np.ndarray:
        """Append int64 [B, S]; logits float32 [B, V] of the last position."""
        import torch

        with torch.no_grad():
            out = self.model(torch.from_numpy(input_ids), past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        logits: np.ndarray = out.logits[:, -1].float().numpy()
        return logits


def _load(path: Path) -> Any:
    """The source's model in float32. Raises InputError where transformers cannot load it whole."""
    import torch
    from transformers import AutoModelForCausalLM

    gguf = path if path.suffix == ".gguf" else next(iter(sorted(path.glob("*.gguf"))), None)
    if gguf is None:
        _check_directory(path)
    try:
        if gguf is not None:
            return _load_gguf(gguf)
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # whatever transformers makes of files that are not what it expects
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path.name}: transformers cannot load it ({first})") from None
    model, found = loaded
    # What a file lacks transformers fills with random numbers: no truth to compare with.
    for kind in ("missing_keys", "mismatched_keys"):
        if found[kind]:
            names = sorted(map(str, found[kind]))
            raise InputError(f"{path.name}: {len(names)} {kind.replace('_keys', '')} tensors, {names[0]} among them")
    return model


def _check_directory(path: Path) -> None:
    """InputError for what transformers would look for elsewhere, or take for another kind of file."""
    if path.is_file():
        raise InputError(f"{path}: expected a model directory or a .gguf file; it is a file of another kind")
    if not (path / "config.json").is_file():
        raise InputError(f"{path}: holds neither config.json nor a .gguf file; expected a model directory")


def _load_gguf(file: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    config = GgufConfig(gguf_file=file.name, dequantize=True)
    return AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=config
    )
