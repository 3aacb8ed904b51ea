"""Which safetensors files make up a checkpoint, and which tensors each is asked for."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from ultramem_deploy.checkpoint.header import shown, strict_json
from ultramem_deploy.errors import InputError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_MAX_INDEX_BYTES = 1 << 30


def locate(path: Path) -> dict[Path, list[str] | None]:
    """The files of the checkpoint at `path`, each with the tensors the index promises in it (None: all it holds)."""
    if path.is_dir():
        if (path / INDEX_NAME).exists():
            return _from_index(path)
        return {inside(path, _single_name(path)): None}
    if not path.exists():
        raise InputError(f"{path}: no such file or directory")
    if path.name == INDEX_NAME:
        return _from_index(path.parent)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: expected a .safetensors file or a directory that holds one")
    return {path: None}


def inside(directory: Path, name: str) -> Path:
    """`directory / name`; InputError when that is missing or lies outside the directory, by name or by symbolic link.

    The one link outside that is accepted is the Hugging Face cache's own: snapshots/REVISION/x -> ../../blobs/HASH.
    """
    pure = PurePosixPath(name)
    if not name or "\0" in name or pure.is_absolute() or ".." in pure.parts:
        raise InputError(f"{directory}: file name {shown(name)} must be relative and stay inside the directory")
    file = directory / pure
    try:
        if not file.is_file():
            raise InputError(f"{directory}: {shown(name)} is missing; get the file, or the whole checkpoint, again")
        root, target = directory.resolve(), file.resolve()
    except OSError as error:
        raise InputError(f"{directory}: {shown(name)} cannot be read: {error.strerror or error}") from None
    cache = root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs"
    if not target.is_relative_to(root) and not cache:
        raise InputError(
            f"{directory}: {shown(name)} is a link that leaves the directory; replace it by the file itself"
        )
    return file


def _single_name(path: Path) -> str:
    if (path / SINGLE_NAME).exists():
        return SINGLE_NAME
    names = sorted(file.name for file in path.glob("*.safetensors"))
    if len(names) == 1:
        return names[0]
    if not names:
        raise InputError(f"{path}: holds no .safetensors file")
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    raise InputError(f"{path}: holds {len(names)} .safetensors files ({listed}) and no {INDEX_NAME}; name one of them")


def _from_index(directory: Path) -> dict[Path, list[str] | None]:
    file = inside(directory, INDEX_NAME)
    try:
        if file.stat().st_size > _MAX_INDEX_BYTES:
            raise InputError(f"{file}: larger than {_MAX_INDEX_BYTES} bytes, which no index is")
        text = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
    weight_map = _weight_map(file, strict_json(text, str(file), "index"))
    shards = {shard: inside(directory, shard) for shard in sorted(set(weight_map.values()))}
    result: dict[Path, list[str] | None] = {}
    for name, shard in sorted(weight_map.items()):
        promised = result.setdefault(shards[shard], [])
        if promised is not None:
            promised.append(name)
    return result


def _weight_map(file: Path, index: dict[str, Any]) -> dict[str, str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(
            f"{file}: expected a non-empty object 'weight_map' (tensor name -> file name), found {shown(weight_map)}"
        )
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise InputError(f"{file}: tensor {shown(name)}: expected a file name, found {shown(shard)}")
    return weight_map
