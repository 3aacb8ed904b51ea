"""Coverage-guided fuzzing of the header and index readers, beyond what the suite's random damage reaches.

    pip install 'ultramem-deploy[fuzz]'
    python -m tests.fuzz.headers_with_atheris [CORPUS] -runs=100000 -max_len=512

An input is a safetensors file where its first byte is even, else an index; whatever is not read must say one line.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ultramem_deploy.checkpoint"]):
    from ultramem_deploy.checkpoint.header import read_header
    from ultramem_deploy.checkpoint.index import INDEX_NAME, locate

from tests.fuzz.guard import answers

_HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
_SEEDS = (
    b"\0" + len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(8),
    b"\1" + b'{"metadata":{},"weight_map":{"a":"one.safetensors","b":"../outside.safetensors"}}',
)


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        root = Path(made) / "in"
        root.mkdir()
        (root / "one.safetensors").write_bytes(_SEEDS[0][1:])

        def check(data: bytes) -> None:
            header = not data[:1] or data[0] % 2 == 0
            file = root / ("fuzzed.safetensors" if header else INDEX_NAME)
            file.write_bytes(data[1:])
            answers((lambda: read_header(file)) if header else (lambda: locate(root)), root)

        for seed in _SEEDS:
            check(seed)
        corpus = Path(made) / "seeds"
        corpus.mkdir()
        for number, seed in enumerate(_SEEDS):
            (corpus / str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, str(corpus)], check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
