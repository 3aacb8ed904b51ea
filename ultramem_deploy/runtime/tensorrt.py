"""Running a TensorRT engine that `build` made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..spec import ModelSpec
from .base import LayerTrace, Trace
from .engine_manifest import check_engine, check_machine, check_model, read_manifest
from .ort_model import description_fingerprint
from .plugins import tensorrt_library
from .tensorrt_engine import LoadedEngine, load_tables
from .tensorrt_plugins import add_tables, load_plugins

PREFILL, DECODE = 0, 1


def open_engine(path: Path) -> TensorRTRunner:
    """The engine `path`, whose manifest and model directory lie beside it.

    Raises InputError where the machine or a file is not what the manifest asks for, and says what to install.
    """
    manifest = read_manifest(path)
    backend, trt, _ = check_machine(path, manifest)
    if not torch.cuda.is_available():
        raise InputError(f"{path}: torch {torch.__version__} sees no GPU; install a build of torch with CUDA")
    check_engine(path, manifest)
    directory = check_model(path, manifest)
    spec = ModelSpec.load(directory)
    if description_fingerprint(spec) != manifest.description:
        raise InputError(f"{path}: {manifest.model}/config.json does not describe it; build the engine again")
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    if manifest.plugin and not manifest.plugin.embedded:
        library = tensorrt_library()
        load_plugins(trt, library)
        add_tables(library, directory)
    # A version-compatible engine brings the code that runs it; we built it, its hash says so.
    runtime.engine_host_code_allowed = bool(manifest.options.get("version_compatible"))
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise InputError(f"{path}: {backend.name} {trt.__version__} cannot load it; build the engine again")
    if manifest.options.get("weight_streaming"):
        engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
    device = torch.device("cuda")
    bound = {name: table for name, table in manifest.tables.items() if not table.resource}
    loaded = LoadedEngine(engine, manifest, load_tables(directory, bound, device), device)
    return TensorRTRunner(spec, loaded, keep=runtime)


class TensorRTRunner:
    """An engine as a `Runner`; `keep` is whatever must live as long as it."""

    def __init__(self, spec: ModelSpec, loaded: LoadedEngine, keep: Any = None) -> None:
        self.spec, self.name = spec, loaded.manifest.backend
        self.vocab_size = spec.decoder.vocab_size
        self._loaded, self._keep = loaded, keep

    def session(self) -> TensorRTSession:
        """A new session with an empty cache."""
        return TensorRTSession(self.spec, self._loaded)

    def logits(self, input_ids: np.ndarray) -> np.ndarray:
        """Logits float32 [B, S, V] of fresh sequences int64 [B, S]; long ones run in pieces over the cache."""
        return self.session().outputs(input_ids)["logits"]

    def trace(self, input_ids: np.ndarray) -> Trace:
        """As `logits`; with the memory layers' choices and outputs where the engine was built with --trace."""
        found = self.session().outputs(input_ids)
        layers = [
            LayerTrace(_flat(found[f"memory.{i}.indices"]), _flat(found[f"memory.{i}.output"]))
            for i in range(len(self.spec.memory))
            if f"memory.{i}.indices" in found
        ]
        return Trace(found["logits"], layers)


class TensorRTSession:
    """One batch of sequences and its cache, on the device. Raises InputError for what the engine does not take."""

    def __init__(self, spec: ModelSpec, loaded: LoadedEngine) -> None:
        self._spec, self._loaded = spec, loaded
        prefill = loaded.manifest.profiles[PREFILL]["shapes"]["input_ids"]
        self._shortest, self._longest = prefill["min"][1], prefill["max"][1]
        self._context = loaded.manifest.profiles[DECODE]["shapes"]["attention_mask"]["max"][1]
        self._length = 0
        self._cache: dict[str, torch.Tensor] = {}

    def feed(self, input_ids: np.ndarray) -> np.ndarray:
        """Append tokens int64 [B, S]; returns the last position's logits, float32 [B, V]."""
        last = torch.empty(0)
        for part in self._pieces(input_ids):
            last = self._step(part)["logits"][:, -1]
        return _numpy(last)

    def outputs(self, input_ids: np.ndarray) -> dict[str, np.ndarray]:
        """Append tokens; every output of all positions but the cache, each [B, S, ...], by name."""
        parts = []
        for ids in self._pieces(input_ids):
            step = self._step(ids)
            parts.append({name: _numpy(value).reshape(*ids.shape, -1) for name, value in step.items()})
        return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}

    def _pieces(self, ids: np.ndarray) -> list[np.ndarray]:
        """Columns to feed at once: as long as the prefill profile takes; what is too short for it goes one by one."""
        if ids.ndim != 2 or ids.size == 0:
            raise InputError(f"input_ids: expected [batch, tokens], at least one of each, found {list(ids.shape)}")
        if ids.min() < 0 or ids.max() >= self._spec.decoder.vocab_size:
            limit = self._spec.decoder.vocab_size
            raise InputError(f"input_ids: {ids.min()}..{ids.max()} outside the vocabulary [0, {limit})")
        pieces, at = [], 0
        while at < ids.shape[1]:
            left = ids.shape[1] - at
            count = min(left, self._longest) if left >= self._shortest else 1
            pieces.append(ids[:, at : at + count])
            at += count
        return pieces

    def _step(self, ids: np.ndarray) -> dict[str, torch.Tensor]:
        total = self._length + ids.shape[1]
        if total > self._context:
            raise InputError(f"{total} tokens: the engine was built for {self._context}; build it with --shapes")
        feeds = {"input_ids": self._on_device(ids), "attention_mask": self._ones(len(ids), total)}
        feeds |= self._cache or self._empty_cache(len(ids))
        found = self._loaded.run(DECODE if ids.shape[1] == 1 else PREFILL, feeds)
        self._length = total
        self._cache = {
            name.replace("present", "past_key_values"): found.pop(name)
            for name in list(found)
            if name.startswith("present.")
        }
        return found

    def _on_device(self, ids: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int64)).to(self._loaded.device)

    def _ones(self, batch: int, total: int) -> torch.Tensor:
        return torch.ones((batch, total), dtype=torch.int64, device=self._loaded.device)

    def _empty_cache(self, batch: int) -> dict[str, torch.Tensor]:
        decoder, loaded = self._spec.decoder, self._loaded
        shape = (batch, decoder.num_kv_heads, 0, decoder.head_dim)
        names = [f"past_key_values.{i}.{part}" for i in range(decoder.num_layers) for part in ("key", "value")]
        return {name: torch.empty(shape, dtype=loaded.dtype(name), device=loaded.device) for name in names}


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    values: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
    return values


def _flat(value: np.ndarray) -> np.ndarray:
    return value.reshape(-1, value.shape[-1])
