"""Planning, measuring and running what the stages made."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..defaults import BATCHES, DEFAULT_BUDGET
from ..errors import CheckFailed, InputError
from .arguments import Budget, Progress, as_batches, as_budget, as_path


def plan(
    src: str | Path,
    *,
    stage: str | None = None,
    batch: int | Sequence[int] = BATCHES,
    memory_budget: Budget = DEFAULT_BUDGET,
    calibrate: bool = False,
    tables: str = "int8",
) -> dict[str, Any]:
    """What the stages would make of `src` and whether they fit, from headers and configurations alone.

    `stage` None plans the chain that makes sense for `src`; `calibrate` measures the machine first, beside `src`;
    `tables` is what stage "quantize" stores. Returns source, family, batches, memory_budget_bytes, layers, stages,
    prefill, profile, warnings and fits; sizes in bytes.
    Raises InputError for what cannot be planned; what does not fit is an answer, not an error.
    """
    from ..forecasting import forecast
    from ..planning.profile import calibrate as measure

    if calibrate:
        parent = Path(src).absolute().parent
        measure(parent if os.access(parent, os.W_OK) else None)
    return forecast(Path(src), stage, as_batches(batch), as_budget(memory_budget), tables)


def profile(
    model: str | Path,
    *,
    text: str | Path | None = None,
    tokens: int = 8192,
    runtime: str | None = None,
    out: str | Path | None = None,
    plot: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Count the accesses of every slot on text; `out` keeps them for `fold`, `plot` draws them. See `profiling`."""
    from .. import profiling
    from ..output_file import check_file, check_picture
    from ..spec import ModelSpec

    if out is not None:
        check_file(Path(out), "--out")
    if plot is not None:
        check_picture(Path(plot))
    told, counts = profiling.profile(Path(model), as_path(text), tokens, runtime, progress)
    if out is not None:
        profiling.save(Path(out), ModelSpec.load(Path(model)), counts, told)
    if plot is not None:
        profiling.plot(Path(plot), ModelSpec.load(Path(model)), counts)
    return told


def verify(
    reference: str | Path,
    candidate: str | Path,
    *,
    text: str | Path | None = None,
    tokens: int = 512,
    max_abs: float | None = None,
    kl: float | None = None,
    runtime: str | None = None,
    check: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare two artifacts; raises CheckFailed where they differ by more than the limits, unless `check` is False.

    Limits that are None follow from what is compared: see `tolerances`. `candidate` keeps the outcome, for `build`.
    """
    from ..verdict import record_verdict
    from ..verification import compare

    result = compare(
        Path(reference),
        Path(candidate),
        text=as_path(text),
        tokens=tokens,
        max_abs=max_abs,
        kl=kl,
        runtime=runtime,
        progress=progress,
    )
    record_verdict(Path(candidate), result.reason)
    if check and result.reason:
        raise CheckFailed(result.reason)
    return result.to_dict()


def generate(
    model: str | Path,
    *,
    prompt: str,
    max_new_tokens: int = 64,
    runtime: str | None = None,
    tables: str | None = None,
    on_text: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Greedy continuation of `prompt`; `on_text` gets each new piece of text as it comes; `tables` as in `load`.

    Returns prompt, text, ids, prompt_tokens, runtime, prefill_seconds, decode_seconds and tokens_per_second.
    """
    from ..runtime.generation import Generation, greedy
    from ..runtime.opening import home, open_runner
    from ..runtime.tokenizer import Tokenizer

    if max_new_tokens < 1:
        raise InputError(f"--max-new-tokens: must be positive, found {max_new_tokens}")
    path = Path(model)
    runner, tokenizer = open_runner(path, runtime, tables=tables), Tokenizer(home(path))
    ids = tokenizer.encode(prompt)
    if not ids:
        raise InputError("--prompt: holds no tokens; give some text to continue")
    if runner.spec:
        _check_positions(len(ids), max_new_tokens, runner.spec.decoder.max_positions)
    stop = runner.spec.tokens.eos if runner.spec else ()
    record, shown = Generation(), ""
    for _ in greedy(runner, ids, max_new_tokens, stop, record):
        text = tokenizer.decode(record.ids)
        # A character may need several tokens: hold back until it is whole.
        if on_text and not text.endswith("\ufffd"):
            on_text(text[len(shown) :])
            shown = text
    text = tokenizer.decode(record.ids)
    if on_text and text != shown:
        on_text(text[len(shown) :])
    timing = {"prefill_seconds": record.prefill_seconds, "decode_seconds": record.decode_seconds}
    return {
        "prompt": prompt,
        "text": text,
        "ids": record.ids,
        "prompt_tokens": len(ids),
        "runtime": runner.name,
        **timing,
        "tokens_per_second": record.tokens_per_second,
    }


def _check_positions(prompt: int, new: int, positions: int) -> None:
    """InputError where a prompt and as many new tokens do not fit the model's positions."""
    if prompt >= positions:
        raise InputError(f"--prompt: holds {prompt} tokens, all of the model's {positions} positions; shorten it")
    if prompt + new > positions:
        raise InputError(
            f"--max-new-tokens: {prompt} tokens of prompt and {new} new ones exceed the model's {positions} positions;"
            f" ask for at most {positions - prompt}"
        )
