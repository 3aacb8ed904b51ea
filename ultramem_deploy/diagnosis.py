"""What `doctor` looks at: one function a check, each on its own, each with the exact fix."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from .errors import UltraMemError
from .runtime.manifest import RUNTIME_PACKAGES
from .runtime.plugins import CHECKOUT, DISTRIBUTION, ORT_VARIABLE, library_info, ort_library

DEVELOPMENT = {"dev", "cpu"}
ABSENT = "not installed"
MIN_DISK, MIN_MEMORY = 5 << 30, 2 << 30
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MEMORY_INFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Check:
    """One finding. `fix` is the command or step that makes it ok; `required` ones must be for the tool to work."""

    name: str
    ok: bool
    found: str
    expected: str
    fix: str = ""
    required: bool = True


@dataclass(frozen=True)
class Package:
    """What the metadata says of this package: from the installation, or from the checkout's pyproject.toml."""

    version: str
    python: str
    requirements: tuple[Requirement, ...]
    extras: dict[str, tuple[Requirement, ...]]
    installed: bool


def doctor(bundle: str | Path | None = None) -> list[dict[str, Any]]:
    """Every check as a dict {name, ok, found, expected, fix, required}. A check that breaks is a failed check.

    With a bundle, also every way in which loading it can fail here.
    """
    checks = [check for examine in CHECKS for check in _machine(examine)]
    if bundle is not None:
        from .bundle_diagnosis import examine as examine_bundle

        checks += examine_bundle(Path(bundle))
    return [asdict(check) for check in checks]


def _machine(examine: Callable[[], Iterable[Check]]) -> list[Check]:
    name = examine.__name__.removeprefix("check_").replace("_", " ")
    return isolated(name, examine, _repair(name))


def isolated(name: str, examine: Callable[[], Iterable[Check]], fix: str) -> list[Check]:
    """What `examine` finds; where it breaks, one failed check with that fix."""
    try:
        return list(examine())
    except UltraMemError as error:
        return [Check(name, False, str(error), "no error", fix)]
    except Exception as error:  # whatever is broken here must not hide the other checks
        return [Check(name, False, f"{type(error).__name__}: {error}", "no error", fix)]


def _repair(name: str) -> str:
    if name.startswith("native") and os.environ.get(ORT_VARIABLE):
        return f"unset {ORT_VARIABLE}, or point it at the library of this release"
    return _install("cpu")


def _install(extra: str = "") -> str:
    """The command that installs this package anew, from where it came."""
    chosen = f"[{extra}]" if extra else ""
    if (CHECKOUT / "pyproject.toml").is_file():
        return f"pip install --editable '{CHECKOUT}{chosen}'"
    return f"pip install --upgrade '{DISTRIBUTION}{chosen}'"


def package() -> Package:
    """This package's own metadata."""
    try:
        own = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return _from_checkout()
    declared = [Requirement(line) for line in own.get_all("Requires-Dist") or ()]
    extras = {
        extra: tuple(r for r in declared if r.marker and _only_with(r, extra))
        for extra in own.get_all("Provides-Extra") or ()
    }
    base = tuple(r for r in declared if r.marker is None or r.marker.evaluate({"extra": ""}))
    return Package(str(own["Version"]), str(own["Requires-Python"] or ""), base, extras, installed=True)


def _only_with(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _from_checkout() -> Package:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    return Package(
        project["version"],
        project["requires-python"],
        tuple(map(Requirement, project.get("dependencies", ()))),
        {name: tuple(map(Requirement, lines)) for name, lines in extras.items()},
        installed=False,
    )


def check_python() -> list[Check]:
    wanted = package().python
    found = platform.python_version()
    ok = SpecifierSet(wanted).contains(found, prereleases=True)
    fix = f"use a Python {wanted}: python3.11 -m venv .venv"
    return [Check("python", ok, f"{found} ({sys.executable})", wanted, fix)]


def check_package() -> list[Check]:
    own = package()
    found = own.version if own.installed else f"{own.version}, run from the checkout {CHECKOUT}"
    return [Check(DISTRIBUTION, own.installed, found, "installed", _install("cpu,hf"), required=False)]


def check_dependencies() -> list[Check]:
    return [_requirement_check(r) for r in package().requirements]


def check_onnxruntime() -> list[Check]:
    """Either distribution gives the module; which extra asked for it does not matter."""
    declared = [r for extra in package().extras.values() for r in extra if r.name in RUNTIME_PACKAGES]
    checks = [_requirement_check(r) for r in declared]
    best = max(checks, key=lambda check: (check.ok, check.found != ABSENT))
    return [replace(best, fix=_install("cpu"))]


def check_extras() -> list[Check]:
    checks = []
    for extra, requirements in package().extras.items():
        if extra in DEVELOPMENT:
            continue
        parts = [_requirement_check(r) for r in requirements]
        found = ", ".join(f"{part.name} {part.found}" for part in parts)
        expected = ", ".join(str(r).partition(";")[0].strip() for r in requirements)
        ok = all(part.ok for part in parts)
        checks.append(Check(f"extra {extra}", ok, found, expected, _install(extra), required=False))
    return checks


def _requirement_check(requirement: Requirement) -> Check:
    expected = str(requirement.specifier) or "any version"
    fix = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(requirement.name, False, ABSENT, expected, fix)
    return Check(requirement.name, requirement.specifier.contains(found, prereleases=True), found, expected, fix)


def check_execution_providers() -> list[Check]:
    from .runtime.ort_model import import_onnxruntime

    providers = import_onnxruntime().get_available_providers()
    expected = "CPUExecutionProvider"
    return [Check("execution providers", expected in providers, ", ".join(providers), expected, _install("cpu"))]


def check_native_library() -> list[Check]:
    path = ort_library()
    info, version = library_info(path), package().version
    return [
        Check("native library", True, str(path), "built"),
        Check("native library version", info["version"] == version, info["version"], version, _repair("native")),
        Check("native library CPU", True, info["isa"], "avx512_bf16, avx512, avx2 or plain", required=False),
    ]


def check_native_operators() -> list[Check]:
    """One SparseLookup without a function body: it runs by our kernel or not at all."""
    from .runtime.ort_model import import_onnxruntime

    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(ort_library()))
    model, feeds, expected = _lookup_example()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    error = float(abs(session.run(None, feeds)[0] - expected).max())
    found = f"SparseLookup in ONNX Runtime {ort.__version__}, max abs error {error:.1e}"
    return [Check("native operators", error <= 1e-6, found, "max abs error at most 1e-6", _repair("native"))]


def _lookup_example() -> tuple[bytes, dict[str, Any], Any]:
    """A one-node model, its inputs and what it must give."""
    import numpy as np
    from onnx import TensorProto, helper

    from .ops import DOMAIN, VERSION

    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    addresses, scores = np.array([[0, 3], [2, 2]]), np.array([[[1], [0.5]], [[2], [-1]]], dtype=np.float32)
    types = {"table": TensorProto.FLOAT, "addresses": TensorProto.INT64, "scores": TensorProto.FLOAT}
    feeds = {"table": table, "addresses": addresses, "scores": scores}
    inputs = [helper.make_tensor_value_info(name, types[name], value.shape) for name, value in feeds.items()]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, (2, 3))]
    node = helper.make_node("SparseLookup", list(feeds), ["output"], domain=DOMAIN)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, VERSION)]
    graph = helper.make_graph([node], "doctor", inputs, outputs)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return cast(Any, model).SerializeToString(), feeds, (table[addresses] * scores).sum(1)


def check_build_tools() -> list[Check]:
    missing = not _library_is_there()
    why = "needed to build the native library" if missing else "only needed to rebuild the native library"
    tools = {
        "C++ compiler": (_compiler(), "apt-get install g++, or set CXX to a C++17 compiler"),
        "cmake": (shutil.which("cmake"), "pip install cmake"),
    }
    return [
        Check(name, found is not None, found or "not found", why, fix, required=missing and name != "cmake")
        for name, (found, fix) in tools.items()
    ]


def _compiler() -> str | None:
    named = os.environ.get("CXX", "").split()[:1]
    return next((path for name in (*named, "c++", "g++", "clang++") if (path := shutil.which(name))), None)


def _library_is_there() -> bool:
    try:
        return ort_library().is_file()
    except UltraMemError:
        return False


def check_disk() -> list[Check]:
    checks = []
    for name, where in (("disk here", Path.cwd()), ("disk for temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(where).free
        fix = f"free some space on the filesystem of {where}"
        checks.append(Check(name, free >= MIN_DISK, _gib(free), f"at least {_gib(MIN_DISK)} free", fix, required=False))
    return checks


def check_memory() -> list[Check]:
    lines = dict(line.split(":", 1) for line in MEMORY_INFO.read_text(encoding="ascii").splitlines() if ":" in line)
    free = int(lines["MemAvailable"].split()[0]) << 10
    expected = f"at least {_gib(MIN_MEMORY)} available"
    return [Check("memory", free >= MIN_MEMORY, _gib(free), expected, "close other programs", required=False)]


def check_huge_pages() -> list[Check]:
    """Random rows of large tables are bound by TLB misses; with huge pages a lookup reads up to twice as fast."""
    if not HUGE_PAGES.is_file():
        return [Check("huge pages", True, "not offered by this kernel", "always or madvise", required=False)]
    state = HUGE_PAGES.read_text(encoding="ascii").partition("[")[2].partition("]")[0]
    fix = f"echo madvise | sudo tee {HUGE_PAGES}"
    return [Check("huge pages", state in ("always", "madvise"), state, "always or madvise", fix, required=False)]


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"


CHECKS: tuple[Callable[[], list[Check]], ...] = (
    check_python,
    check_package,
    check_dependencies,
    check_onnxruntime,
    check_execution_providers,
    check_native_library,
    check_native_operators,
    check_build_tools,
    check_extras,
    check_disk,
    check_memory,
    check_huge_pages,
)
