"""What `doctor BUNDLE` looks at: every way in which loading that bundle can fail on this machine, each with its fix."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from packaging.version import Version

from .diagnosis import Check, isolated
from .errors import UltraMemError
from .ops import DOMAIN, VERSION
from .runtime.bundle_files import Document, wrong_hashes, wrong_sizes, wrong_tables
from .runtime.engine_backends import find_backend
from .runtime.engine_manifest import ENGINE_FILE, check_machine
from .runtime.engine_manifest import read_manifest as read_engine_manifest
from .runtime.manifest import MANIFEST, RUNTIME_PACKAGES, RUNTIMES, SCHEMA, installed, read_manifest, this_platform
from .runtime.plugins import library_info, library_version, ort_library, tensorrt_library

SMALL = 16 << 20  # as the C++ library has it: smaller files are hashed whenever a bundle is opened
AGAIN = "ultramem-deploy bundle EXPORTED {bundle} --with-plugins --overwrite"
GENAI_CONFIG = "genai_config.json"


def examine(bundle: Path) -> list[Check]:
    """The findings, in the order of loading; what cannot be read ends the list."""
    manifest = isolated("manifest", partial(_manifest, bundle), _again(bundle))
    if not all(check.ok for check in manifest):
        return manifest
    document = read_manifest(bundle, RUNTIMES)
    files = isolated("files", partial(_files, bundle, document), _copy(bundle))
    later: dict[str, Callable[[Path, Document], Iterable[Check]]] = {
        "operators": _operators,
        "plugin": _plugin,
        "onnxruntime": _onnxruntime,
        "tokenizer": _tokenizer,
        "GenAI": _genai,
        "loading": _loading,
    }
    if document["runtime"] == "tensorrt":
        later = {"operators": _operators, "tokenizer": _tokenizer, "engine's plugin": _engine_plugin, "engine": _engine}
    if not all(check.ok for check in files):
        later = {name: later[name] for name in ("operators", "onnxruntime") if name in later}
    found = [isolated(name, partial(check, bundle, document), _again(bundle)) for name, check in later.items()]
    return manifest + files + [check for checks in found for check in checks]


def _again(bundle: Path) -> str:
    return AGAIN.format(bundle=bundle)


def _copy(bundle: Path) -> str:
    return f"copy the whole directory again (cp -L: no links), or {_again(bundle)}"


def _manifest(bundle: Path) -> Iterable[Check]:
    expected = f"{MANIFEST} of schema 1 to {SCHEMA}"
    try:
        document = read_manifest(bundle, RUNTIMES)
    except UltraMemError as error:
        fix = "ultramem-deploy bundle EXPORTED OUT" if not (bundle / MANIFEST).is_file() else _again(bundle)
        return [Check("manifest", False, str(error), expected, fix)]
    return [Check("manifest", True, f"schema {document['schema']} for {document['runtime']}", expected)]


def _files(bundle: Path, document: Document) -> Iterable[Check]:
    """Sizes, table headers, hashes of small files, links that ONNX Runtime would refuse."""
    problems = list(wrong_sizes(bundle, document))
    if not problems:
        problems = [*wrong_tables(bundle, document), *wrong_hashes(bundle, document, most=SMALL)]
    found = "; ".join(problems) or f"{len(document['files'])} files"
    yield Check("files", not problems, found, "sizes, tables and small files' hashes as in the manifest", _copy(bundle))
    links = [name for name in document["files"] if (bundle / name).is_symlink()]
    found = f"symbolic links: {', '.join(links)}" if links else "no symbolic links"
    yield Check("links", not links, found, "no symbolic links: ONNX Runtime refuses those that leave", _copy(bundle))


def _operators(bundle: Path, document: Document) -> Iterable[Check]:
    wanted = document["requires"]["operators"]
    found = f"{DOMAIN} version {VERSION}"
    fix = f"pip install ultramem-deploy=={document['tool']['version']}"
    yield Check("operators", wanted == {"domain": DOMAIN, "version": VERSION}, found, str(wanted), fix)


def _plugin(bundle: Path, document: Document) -> Iterable[Check]:
    """The bundle's library for this platform, or the one installed here."""
    wanted, here = document["requires"]["plugin"], this_platform()
    inside = [bundle / entry["file"] for entry in document["plugins"] if entry["platform"] == here]
    others = [entry["platform"] for entry in document["plugins"] if entry["platform"] != here]
    if others and not inside:
        yield Check("plugin platform", False, f"for {', '.join(others)}", here, _again(bundle), required=False)
    library = inside[0] if inside else ort_library()
    info = library_info(library)
    fix = f"pip install --upgrade ultramem-deploy, then {_again(bundle)}"
    ok = Version(info["version"]) >= Version(wanted)
    yield Check("plugin version", ok, f"{info['version']} ({library.name}, {info['isa']})", f">={wanted}", fix)


def _onnxruntime(bundle: Path, document: Document) -> Iterable[Check]:
    wanted = document["requires"]["onnxruntime"]
    found = next((version for name in RUNTIME_PACKAGES if (version := installed(name))), None)
    ok = found is not None and Version(found) >= Version(wanted)
    fix = f"pip install 'onnxruntime>={wanted}', or name a newer libonnxruntime.so in ULTRAMEM_ONNXRUNTIME"
    yield Check("onnxruntime", ok, found or "not installed", f">={wanted}", fix)


def _tokenizer(bundle: Path, document: Document) -> Iterable[Check]:
    held = "file" in document["tokenizer"]
    fix = "put tokenizer.json beside the checkpoint, then export and bundle again; or pass token ids"
    yield Check("tokenizer", held, "there" if held else "none", "tokenizer.json", fix, required=False)
    name = "onnxruntime-extensions"
    found = installed(name)
    fix = f"pip install {name}, then make cpp; or name libortextensions.so in ULTRAMEM_TOKENIZER; or pass token ids"
    yield Check("tokenizer for C++", found is not None, found or "not installed", name, fix, required=False)


def _genai(bundle: Path, document: Document) -> Iterable[Check]:
    config = bundle / GENAI_CONFIG
    library = json.loads(config.read_text(encoding="utf-8"))["model"]["decoder"]["session_options"]
    named = library.get("custom_ops_library")
    good = named is None or (bundle / named).is_file()
    found = named or "function bodies"
    yield Check("GenAI's plugin", good, found, f"a file that {GENAI_CONFIG} names", _again(bundle))
    version = installed("onnxruntime-genai")
    fix = "pip install onnxruntime-genai"
    yield Check("onnxruntime-genai", version is not None, version or "not installed", "any", fix, required=False)


def _engine_plugin(bundle: Path, document: Document) -> Iterable[Check]:
    """Where the engine calls our plugins: the bundle's library for this platform, or the one built here."""
    if not document["graph"]["uses_operators"] or document["engine"]["embeds_plugin"]:
        return
    wanted, here = document["requires"]["plugin"], this_platform()
    inside = [bundle / entry["file"] for entry in document["plugins"] if entry["platform"] == here]
    library = inside[0] if inside else tensorrt_library()
    version = library_version(library)
    ok = Version(version) >= Version(wanted)
    yield Check("engine's plugin", ok, f"{version} ({library.name})", f">={wanted}", "make plugins, then bundle again")


def _engine(bundle: Path, document: Document) -> Iterable[Check]:
    """The TensorRT and the GPU that it was built for."""
    held = read_engine_manifest(bundle / ENGINE_FILE)
    expected = f"{held.backend} {held.backend_version} and a GPU that it runs on"
    requirement = find_backend(held.backend).requirement(held.backend_version)
    fix = f"pip install '{requirement}', where `nvidia-smi` lists a GPU; or build the engine again here"
    try:
        gpu = check_machine(bundle / ENGINE_FILE, held)[2]
    except UltraMemError as error:
        yield Check("engine", False, str(error), expected, fix)
        return
    yield Check("engine", True, f"{held.backend} {held.backend_version}, {gpu.name}", expected, fix)


def _loading(bundle: Path, document: Document) -> Iterable[Check]:
    """ONNX Runtime opens the graph; the tables stay on disk."""
    from .runtime.ort import OrtRunner

    runner = OrtRunner(bundle)
    logits = runner.logits(_first_token())
    yield Check("loading", bool(abs(logits).max() < float("inf")), "one token runs", "finite logits", _again(bundle))


def _first_token() -> Any:
    import numpy as np

    return np.zeros((1, 1), np.int64)
