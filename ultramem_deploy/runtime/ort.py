"""Running a bundle with ONNX Runtime on the CPU, by our kernels or by the operators' function bodies."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from ..planning import prefill_chunk
from ..spec import ModelSpec
from .base import LayerTrace, Trace
from .manifest import MANIFEST, check_onnxruntime, check_version, read_manifest
from .ort_cache import Lane, new_lane, split
from .ort_model import Opened, check_description, open_model, read_model, uses_memory
from .plugins import library_info, ort_library


class OrtRunner:
    """A bundle in ONNX Runtime; see `runtime.base.Runner`.

    kernels: run the ai.ultramem operators by libultramem_ort; False runs their function bodies. threads: None takes
    every core of the process. tables: "auto", "resident" or "mapped" (docs/kernels.md); None takes $ULTRAMEM_TABLES,
    else auto. Raises InputError for what is no bundle, one that ONNX Runtime cannot load, or one whose
    manifest requires newer libraries.
    """

    def __init__(
        self, bundle: Path, *, kernels: bool = True, threads: int | None = None, tables: str | None = None
    ) -> None:
        self.bundle = Path(bundle)
        self.name = "ort" if kernels else "ort-bodies"
        self._proto = read_model(self.bundle)
        _check_versions(self.bundle, plugin=kernels and uses_memory(self._proto))
        self.spec: ModelSpec = ModelSpec.load(self.bundle)
        check_description(self.bundle, self._proto, self.spec)
        self.vocab_size = self.spec.decoder.vocab_size
        self._kernels, self._threads, self._tables = kernels, threads, tables
        self._model = self._open(())
        self._traced: Opened | None = None

    def session(self) -> OrtSession:
        """A new session with an empty cache."""
        return OrtSession(self._model, self.spec)

    def logits(self, input_ids: np.ndarray) -> np.ndarray:
        """Logits float32 [B, S, V] of fresh sequences int64 [B, S]; long ones run in chunks over the cache."""
        return self.session().outputs(input_ids)["logits"]

    def trace(self, input_ids: np.ndarray) -> Trace:
        """As `logits`, with every memory layer's choice and output, in a second session that shows them."""
        if self._traced is None:
            names = [f"memory.{i}.{part}" for i in range(len(self.spec.memory)) for part in ("indices", "output")]
            self._traced = self._open(tuple(names))
        found = OrtSession(self._traced, self.spec).outputs(input_ids)
        layers = [
            LayerTrace(_flat(found[f"memory.{i}.indices"]), _flat(found[f"memory.{i}.output"]))
            for i in range(len(self.spec.memory))
        ]
        return Trace(found["logits"], layers)

    def _open(self, extra: tuple[str, ...]) -> Opened:
        return open_model(
            self.bundle,
            self._proto,
            self.spec.decoder,
            kernels=self._kernels,
            threads=self._threads,
            tables=self._tables,
            extra=extra,
        )


def _check_versions(bundle: Path, *, plugin: bool) -> None:
    """Enforce what manifest.json requires; an export without one says nothing of versions."""
    if not (bundle / MANIFEST).is_file():
        return
    document = read_manifest(bundle)
    check_onnxruntime(bundle, document)
    if plugin:
        library = ort_library()
        version = library_info(library)["version"]
        check_version(
            f"{bundle}: {library.name}", version, document["requires"]["plugin"], "install a newer ultramem-deploy"
        )


class OrtSession:
    """One batch of sequences with its key-value cache. Raises InputError for ids that are no tokens of the model."""

    def __init__(self, model: Opened, spec: ModelSpec) -> None:
        self._model, self._chunk, self._vocab_size = model, prefill_chunk(spec), spec.decoder.vocab_size
        self._lanes: list[Lane] = []

    def feed(self, input_ids: np.ndarray) -> np.ndarray:
        """Append tokens int64 [B, S]; returns the last position's logits, float32 [B, V]."""
        last = np.empty(0, np.float32)
        for part in self._parts(input_ids):
            last = self._run(part)["logits"][:, -1]
        return last

    def outputs(self, input_ids: np.ndarray) -> dict[str, np.ndarray]:
        """Append tokens; every output of all positions, each [B, S, ...], by name."""
        parts = [self._run(part) for part in self._parts(input_ids)]
        return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}

    def _parts(self, input_ids: np.ndarray) -> list[np.ndarray]:
        """The columns to feed at once, so that batch and length together stay within the prefill chunk."""
        self._check(input_ids)
        batch, length = input_ids.shape
        step = max(1, self._chunk // batch)
        return [input_ids[:, start : start + step] for start in range(0, length, step)]

    def _check(self, ids: np.ndarray) -> None:
        if ids.ndim != 2 or ids.size == 0:
            raise InputError(f"input_ids: expected [batch, tokens], at least one of each, found {list(ids.shape)}")
        if ids.min() < 0 or ids.max() >= self._vocab_size:
            # Gather would count a negative id from the end.
            raise InputError(f"input_ids: {ids.min()}..{ids.max()} outside the vocabulary [0, {self._vocab_size})")
        held = sum(lane.batch for lane in self._lanes)
        if held and held != len(ids):
            raise InputError(f"input_ids: this session holds {held} sequences, found {len(ids)}")

    def _run(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        batch, length = ids.shape
        if not self._lanes:
            self._lanes = [new_lane(self._model, batch)]
        elif self._model.packed and length > 1 and len(self._lanes) < batch:
            self._lanes = split(self._lanes[0])
        rows = np.split(ids, len(self._lanes))
        results = [_by_row(lane.run(part), part) for lane, part in zip(self._lanes, rows, strict=True)]
        return {name: np.concatenate([result[name] for result in results]) for name in results[0]}


def _by_row(outputs: dict[str, np.ndarray], ids: np.ndarray) -> dict[str, np.ndarray]:
    """Traced values are [B*S, ...]; all become [B, S, ...]."""
    return {
        name: value if name == "logits" else value.reshape(*ids.shape, value.shape[-1])
        for name, value in outputs.items()
    }


def _flat(value: np.ndarray) -> np.ndarray:
    return value.reshape(-1, value.shape[-1])
