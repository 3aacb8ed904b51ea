"""For a source that no family fits: the one that it comes closest to, and what keeps it from being one."""

from __future__ import annotations

from collections.abc import Iterable

from ultramem_deploy.errors import ConfigError, InputError

from .base import Importer, Source
from .matching import TensorsDiffer

_CLOSE = 6
"""With more problems than this a configuration is not of a family, whatever family comes closest."""
_SHOWN = 3


def nearest_family(source: Source, importers: Iterable[Importer]) -> str | None:
    """What to say of the importer that finds the fewest problems; None where even that one finds many."""
    tried = [(_misfit(one, source), one.family) for one in _alike(source, importers)]
    if not tried:
        return None
    (keys, _, what), family = min(tried, key=lambda one: one[0][:2])
    if keys > _CLOSE:
        return None
    return f"{family} comes closest: {what}; convert with --from {family} if it is one"


def nearest_tensors(source: Source, found: Importer, error: TensorsDiffer, importers: Iterable[Importer]) -> str:
    """What to say of the family whose tensors the source's come closest to, where those of `found` do not fit."""
    tried = [(error.count, found.family)]
    for one in _alike(source, importers):
        try:
            one.plan(source)
        except TensorsDiffer as other:
            tried.append((other.count, one.family))
        except InputError:
            continue
        else:
            return f"every tensor fits {one.family}: convert with --from {one.family} if it is one"
    count, family = min(tried, key=lambda one: one[0])
    if family == found.family:
        return f"{family} comes closest"
    many = "1 tensor does" if count == 1 else f"{count} tensors do"
    return f"{family} comes closest: {many} not fit"


def _alike(source: Source, importers: Iterable[Importer]) -> list[Importer]:
    """The families whose configurations lie in a file of that name."""
    if source.gguf is not None:
        return []
    return [one for one in importers if one.config_name == source.config_name and not one.reads_gguf]


def _misfit(importer: Importer, source: Source) -> tuple[int, bool, str]:
    """How many keys do not fit, whether the tensors do not either, and what does not."""
    try:
        importer.plan(source)
    except ConfigError as error:
        more = len(error.problems) - _SHOWN
        return len(error.problems), True, "; ".join(error.problems[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
    except InputError as error:
        return 0, True, f"its keys fit, its tensors do not: {error}"
    return 0, False, "every key and tensor fits"
