"""Models that the benchmarks run on."""

from __future__ import annotations

from pathlib import Path

from demo.source import cache_directory, source_model


def saved_source() -> Path:
    """SmolLM2-135M as transformers saves it, float32, cached."""
    target = cache_directory() / "smollm2-135m-instruct-hf"
    if not (target / "config.json").is_file():
        from transformers import AutoTokenizer

        from ultramem_deploy.runtime.transformers_runner import TransformersRunner

        source = source_model()
        partial = target.with_suffix(".partial")
        TransformersRunner(source).model.save_pretrained(partial)
        gguf = next(source.glob("*.gguf"))
        AutoTokenizer.from_pretrained(source, gguf_file=gguf.name).save_pretrained(partial)
        partial.rename(target)
    return target
