"""The weights that a training run left, as safetensors, `.pt`, `.pth`, DCP or the ranks of vertical parallel."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from pathlib import Path

from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.checkpoint.index import INDEX_NAME, SINGLE_NAME, inside
from ultramem_deploy.errors import InputError

from .base import SourceTensor
from .pickled import read_pickle
from .pickled_dcp import is_dcp, read_dcp
from .pickled_zip import read_state_dict

DCP_FOLDER = "model_and_optim"
PICKLED = ("model.pt", "consolidated/consolidated.pth", "consolidated.pth")
_ENCODED = "gA"  # base64 of a pickle's first byte
_RANK = re.compile(r"rank_(\d{1,6})")
_PREFIXES = ("module.", "_orig_mod.", "model.", "transformer.")
_OTHERS = ("optim.", "optimizer.")  # what a run saves beside its model
_ANYWHERE = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


@dataclass(frozen=True)
class Weights:
    """Tensors by name (prefixes of wrappers cut off), or those of every rank; `files` hold them."""

    tensors: dict[str, SourceTensor]
    files: tuple[Path, ...]
    ranks: dict[int, dict[str, SourceTensor]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def open_weights(directory: Path) -> Weights:
    """What lies in `directory`, names and shapes alone; the first form there is of those below.

    InputError where there is none, or it is damaged.
    """
    forms = _forms(directory)
    if not forms:
        raise InputError(
            f"{directory}: holds no weights: expected {SINGLE_NAME}, {', '.join(PICKLED)}, rank_0/model.pt,"
            f" {DCP_FOLDER}/.metadata or .metadata"
        )
    used, *left = forms
    warnings = (f"{used} is read; {', '.join(left)} beside it left unread",) if left else ()
    if used in (SINGLE_NAME, INDEX_NAME):
        checkpoint = Checkpoint.open(directory)
        tensors = {decoded(name): SourceTensor.of(checkpoint, name) for name in checkpoint.tensors}
        return Weights(plain_names(directory, tensors), checkpoint.files, warnings=warnings)
    if used in PICKLED:
        file = inside(directory, used)
        return Weights(plain_names(file, read_state_dict(file)), (file,), warnings=warnings)
    if used == "rank_0":
        return _ranks(directory, warnings)
    folder = directory / used
    files = (folder / ".metadata", *sorted(folder.glob("*.distcp")))
    return Weights(plain_names(folder, read_dcp(folder)), files, warnings=warnings)


def _forms(directory: Path) -> list[str]:
    forms = [name for name in (INDEX_NAME, SINGLE_NAME) if (directory / name).is_file()][:1]
    forms += [name for name in PICKLED if (directory / name).is_file()]
    forms += ["rank_0"] if _rank_files(directory) else []
    return forms + [name for name in (DCP_FOLDER, ".") if is_dcp(directory / name)]


def _rank_files(directory: Path) -> dict[int, Path]:
    found = {}
    for folder in directory.glob("rank_*"):
        match = _RANK.fullmatch(folder.name)
        if match and (folder / "model.pt").is_file():
            found[int(match[1])] = inside(directory, f"{folder.name}/model.pt")
    return dict(sorted(found.items()))


def _ranks(directory: Path, warnings: tuple[str, ...]) -> Weights:
    files = _rank_files(directory)
    ranks = {rank: plain_names(file, read_state_dict(file)) for rank, file in files.items()}
    return Weights({}, tuple(files.values()), ranks, warnings)


def decoded(name: str) -> str:
    """The name behind a key of the official code's own safetensors files: base64 of a pickled ((name,), False)."""
    if "." in name or not name.startswith(_ENCODED):
        return name
    try:
        data = base64.b64decode(name, altchars=b"-_", validate=True)
    except ValueError:
        return name
    content = read_pickle(data, f"tensor name {shown(name)}", ())
    keys = content[0] if isinstance(content, tuple) and len(content) == 2 and content[1] is False else None
    if not isinstance(keys, tuple) or not all(isinstance(key, str) for key in keys):
        raise InputError(f"tensor name {shown(name)}: expected the encoded name of a tensor; save the file again")
    return ".".join(keys)


def plain_names(where: Path, tensors: dict[str, SourceTensor]) -> dict[str, SourceTensor]:
    """Names without what DDP, FSDP, torch.compile and the Hugging Face wrapper put before them."""
    result: dict[str, SourceTensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(_OTHERS):
            continue
        plain = name
        for wrapper in _ANYWHERE:
            plain = plain.replace(wrapper, "")
        while plain.startswith(_PREFIXES):
            plain = plain.partition(".")[2]
        if plain in result:
            raise InputError(f"{where}: tensors {shown(result[plain].name)} and {shown(name)} are both {shown(plain)}")
        result[plain] = tensor
    return result
