"""Decode of one bundle by the C++ library, our Python runtime and ONNX Runtime GenAI, in turn.

    make cpp && python benchmarks/cpp/decode.py BUNDLE [--tokens 64] [--rounds 5] [--json]

Each run is a process of its own with the same prompt, greedy, batch 1, every core. The figure is tokens after the first
over their seconds, as each program's user would count them; the required ratio is the C++ library's over each other's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import machine, median, print_table

ROOT = Path(__file__).resolve().parents[2]
PROMPT = [(37 * i + 11) % 1000 for i in range(64)]
REQUIRED = 1.0
_PYTHON = """
import json, sys
from ultramem_deploy.runtime.generation import Generation, greedy
from ultramem_deploy.runtime.ort import OrtRunner
from pathlib import Path
record = Generation()
ids = list(greedy(OrtRunner(Path(sys.argv[1])), json.loads(sys.argv[2]), int(sys.argv[3]), (), record))
print(json.dumps({"ids": ids, "tokens_per_second": record.tokens_per_second}))
"""
_GENAI = """
import json, sys, time
import onnxruntime_genai as og
prompt, new = json.loads(sys.argv[2]), int(sys.argv[3])
model = og.Model(sys.argv[1])
params = og.GeneratorParams(model)
params.set_search_options(max_length=len(prompt) + new, min_length=len(prompt) + new, do_sample=False)
generator = og.Generator(model, params)
generator.append_tokens(prompt)
generator.generate_next_token()
start = time.perf_counter()
while not generator.is_done():
    generator.generate_next_token()
rate = (new - 1) / (time.perf_counter() - start)
print(json.dumps({"ids": [int(t) for t in generator.get_sequence(0)[len(prompt):]], "tokens_per_second": rate}))
"""


def _cpp(program: Path, bundle: Path, tokens: int) -> dict[str, Any]:
    *text, last = _run([program, bundle, ",".join(map(str, PROMPT)), tokens]).splitlines()
    return {"ids": [int(part) for part in text[-1].split(",")], **json.loads(last)}


def _script(script: str, bundle: Path, tokens: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_run([sys.executable, "-c", script, bundle, PROMPT, tokens]).splitlines()[-1])
    return found


def _run(command: list[Any]) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd=ROOT)
    if result.returncode:
        raise click.ClickException(f"{command[0]}: {result.stderr.strip().splitlines()[-1]}")
    return result.stdout


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--tokens", default=64, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--prefix", type=click.Path(path_type=Path), default=ROOT / "build/cpp", help="Where make cpp installed.")
@click.option("--json", "as_json", is_flag=True)
def main(bundle: Path, tokens: int, rounds: int, prefix: Path, as_json: bool) -> None:
    """Exit code 1 where the C++ library is slower than another, or generates other tokens."""
    bundle = bundle.resolve()
    runs = {
        "C++": lambda: _cpp(prefix / "bin" / "minimal", bundle, tokens),
        "Python": lambda: _script(_PYTHON, bundle, tokens),
        "GenAI": lambda: _script(_GENAI, bundle, tokens),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in list(runs) if turn % 2 else list(runs)[::-1]:
            found[name].append(runs[name]())
    rates = {name: median([one["tokens_per_second"] for one in all_of]) for name, all_of in found.items()}
    best = {name: max(one["tokens_per_second"] for one in all_of) for name, all_of in found.items()}
    ratios = {name: rates["C++"] / rates[name] for name in ("Python", "GenAI")}
    # A model without an end of text stops GenAI at token 0: the tokens that both have are compared.
    first = found["C++"][0]["ids"]
    everyone = [one["ids"] for all_of in found.values() for one in all_of]
    same = all(a == b for ids in everyone for a, b in zip(ids, first, strict=False))
    result = {
        "tokens_per_second": rates, "best": best, "ratio": ratios, "same_tokens": same, "rounds": rounds,
        "machine": machine(), "passed": same and min(ratios.values()) >= REQUIRED,
    }  # fmt: skip
    print_table(
        ["program", "tokens/s, median", "best", "C++ against it"],
        [[name, rates[name], best[name], ratios.get(name, 1.0)] for name in runs],
    )
    print(f"same tokens: {'yes' if same else 'no'}")
    print("machine:", ", ".join(f"{key} {value}" for key, value in machine().items()))
    if as_json:
        print(json.dumps(result))
    sys.exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
