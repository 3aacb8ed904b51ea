"""From a prepared ONNX model to a serialized engine, for both TensorRTs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from onnx import ModelProto

from ...checkpoint.files import write_atomic
from ...errors import InputError
from ...runtime.engine_backends import Backend
from .options import BuildOptions
from .profiles import Profile, Range

DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Built:
    """A serialized engine (a buffer) and what its network shows: {name, dtype, shape}, -1 where a size varies."""

    engine: Any
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    profiles: list[dict[str, Any]]
    layers: int


class EngineBuilder:
    """One build with the module `trt`, which is tensorrt or tensorrt_rtx; errors name `what`."""

    def __init__(self, trt: Any, backend: Backend, what: str) -> None:
        self.trt, self.backend, self.what = trt, backend, what
        self.log = _logger(trt)
        self.builder = trt.Builder(self.log)
        if self.builder is None:
            raise InputError(f"{what}: TensorRT cannot start a builder here{self._why()}")

    def build(
        self, model: ModelProto, folder: Path, profiles: Sequence[Profile], options: BuildOptions, plugin: Path | None
    ) -> Built:
        """Parse `model`, whose external weights lie in `folder`, and build it.

        plugin: the library to put into the engine. Raises InputError with TensorRT's own first complaint.
        """
        network = self._parse(model, folder)
        config = self._config(options, plugin)
        shapes = [self._add_profile(config, model, profile) for profile in profiles]
        cache = self._timing_cache(config, options.timing_cache)
        engine = self.builder.build_serialized_network(network, config)
        if engine is None:
            raise InputError(f"{self.what}: TensorRT {self.trt.__version__} cannot build it{self._why()}")
        if cache is not None:
            write_atomic(cache, bytes(config.get_timing_cache().serialize()))
        described = [{"name": p.name, "shapes": s} for p, s in zip(profiles, shapes, strict=True)]
        inputs = [_port(network.get_input(i)) for i in range(network.num_inputs)]
        outputs = [_port(network.get_output(i)) for i in range(network.num_outputs)]
        return Built(engine, inputs, outputs, described, network.num_layers)

    def _parse(self, model: ModelProto, folder: Path) -> Any:
        network = self.builder.create_network(_flag(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"))
        parser = self.trt.OnnxParser(network, self.log)
        serialized = cast(Any, model).SerializeToString()
        # The second argument is the file whose folder relative names of weights are looked up in.
        if not parser.parse(serialized, str(folder / "model.onnx")):
            error = parser.get_error(0)
            node = f" at node {error.node_name()} ({error.node_operator()})" if error.node_name() else ""
            raise InputError(f"{self.what}: TensorRT {self.trt.__version__} cannot parse it{node}: {error.desc()}")
        # The parser keeps the weights of small constants; the network reads them until it is built.
        self._parser = parser
        return network

    def _config(self, options: BuildOptions, plugin: Path | None) -> Any:
        trt, config = self.trt, self.builder.create_builder_config()
        if options.dtype != "tf32":
            config.clear_flag(trt.BuilderFlag.TF32)
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
        if options.aux_streams is not None:
            config.max_aux_streams = options.aux_streams
        if options.weight_streaming:
            config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible and not self.backend.portable_engines:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if plugin is not None:
            config.plugins_to_serialize = [str(plugin)]
        return config

    def _timing_cache(self, config: Any, file: Path | None) -> Path | None:
        """Use the timings in `file` where it exists; returns where to write them."""
        if file is None:
            return None
        cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            raise InputError(
                f"--timing-cache: {file} is of another GPU or another TensorRT; name another file, or remove this one"
            )
        return file

    def _add_profile(self, config: Any, model: ModelProto, profile: Profile) -> dict[str, Any]:
        made, shapes = self.builder.create_optimization_profile(), {}
        for value in model.graph.input:
            dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            if not any(isinstance(size, str) for size in dims):
                continue
            ranges = profile.ranges(dims)
            shape = {bound: [getattr(r, bound) for r in ranges] for bound in Range.__dataclass_fields__}
            made.set_shape(value.name, *shape.values())
            shapes[value.name] = shape
        config.add_optimization_profile(made)
        return shapes

    def _why(self) -> str:
        return f": {self.log.errors[0]}" if self.log.errors else ""


def _port(tensor: Any) -> dict[str, Any]:
    dtype = tensor.dtype.name
    return {"name": tensor.name, "dtype": DTYPES.get(dtype, dtype.lower()), "shape": list(tensor.shape)}


def _flag(flags: Any, name: str) -> int:
    """A bit of a creation flag; 0 where a newer TensorRT has dropped it, since it knows nothing else."""
    return 1 << int(getattr(flags, name)) if hasattr(flags, name) else 0


def _logger(trt: Any) -> Any:
    """A logger that keeps errors for our messages and shows nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(" ".join(message.split()))

    return Log()
