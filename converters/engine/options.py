"""What `build` is asked, checked before anything is read or written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...runtime.engine_backends import Backend, find_backend

DTYPES = ("float32", "tf32", "float16", "bfloat16")
MODES = ("portable", "plugin")
TABLES = ("inputs", "resource")


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    shapes: "BxL,BxL,BxL", the smallest, the usual and the largest batch and context (see `profiles.parse_shapes`).
    dtype: what matrix products and the cache are computed in. mode: None takes plugins where the backend can.
    tables: "inputs" of the engine, which its runner binds, or a "resource" that its plugins load themselves.
    workspace: bytes of scratch memory a layer may take; None leaves it to TensorRT. aux_streams: how many CUDA streams
    beside its own an engine may run branches on, such as a skip path's memory layer; None leaves it to TensorRT. trace:
    the engine also shows each memory layer's choice and output.
    """

    backend: str
    shapes: str | None = None
    dtype: str = "float32"
    mode: str | None = None
    tables: str = "inputs"
    workspace: int | None = None
    aux_streams: int | None = None
    timing_cache: Path | None = None
    weight_streaming: bool = False
    hardware_compatible: bool = False
    version_compatible: bool = False
    embed_plugin: bool = False
    trace: bool = False

    def checked(self) -> Backend:
        """The backend. Raises InputError for a wrong value, and for what the backend lacks."""
        backend = find_backend(self.backend)
        if self.dtype not in DTYPES:
            raise InputError(f"--dtype: expected one of {', '.join(DTYPES)}, found {self.dtype!r}")
        if self.mode not in (None, *MODES):
            raise InputError(f"--mode: expected one of {', '.join(MODES)}, found {self.mode!r}")
        if self.mode == "plugin" and not backend.takes_plugins:
            raise InputError(
                f"--mode plugin: {backend.name} takes no plugins; use --mode portable, or --backend tensorrt"
            )
        if self.tables not in TABLES:
            raise InputError(f"--tables: expected one of {', '.join(TABLES)}, found {self.tables!r}")
        if self.tables == "resource" and (self.embed_plugin or self.resolved_mode(backend) != "plugin"):
            raise InputError(
                "--tables resource: only plugins that lie beside the engine load tables; use --mode plugin without "
                "--embed-plugin, or --tables inputs"
            )
        if self.aux_streams is not None and self.aux_streams < 0:
            raise InputError(f"--aux-streams: expected 0 or more, found {self.aux_streams}")
        if self.embed_plugin and self.resolved_mode(backend) != "plugin":
            raise InputError("--embed-plugin: only an engine of --mode plugin has a library to carry")
        for option, why in backend.lacks.items():
            if getattr(self, option.removeprefix("--").replace("-", "_")):
                raise InputError(f"{option}: {backend.name} has no such thing: {why}; leave it out")
        return backend

    def resolved_mode(self, backend: Backend) -> str:
        return self.mode or ("plugin" if backend.takes_plugins else "portable")

    def recorded(self) -> dict[str, Any]:
        """What the manifest keeps: the options that change the engine; paths of this machine are none of them."""
        kept = (
            "shapes",
            "tables",
            "workspace",
            "aux_streams",
            "weight_streaming",
            "hardware_compatible",
            "version_compatible",
            "trace",
        )
        return {name: getattr(self, name) for name in kept}
