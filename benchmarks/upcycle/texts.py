"""Three English texts to calibrate, choose and report on: Jane Austen, the King James Bible, Wikipedia articles.

Each is fetched once through its package manager, checked by the hash of the text it gives, and cached as UTF-8 with
form feeds between documents (chapters, articles), which is how `ultramem_deploy.text.load_corpus` splits them.
"""

from __future__ import annotations

import bz2
import hashlib
import html
import re
import struct
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from demo.source import cache_directory
from ultramem_deploy.errors import InputError

_STRSXP = b"\x00\x00\x00\x10"
_WIKI = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_SHORTEST = 2000


def text_file(name: str) -> Path:
    """The cached text `austen`, `kjv` or `wikipedia`; InputError where it cannot be had or is not the expected one."""
    make, sha256 = TEXTS[name]
    file = cache_directory() / "texts" / f"{name}.txt"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            content = "\f".join(make(Path(folder)))
        partial = file.with_suffix(".partial")
        partial.write_text(content, encoding="utf-8")
        partial.replace(file)
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != sha256:
        raise InputError(f"{file}: expected SHA-256 {sha256}, found {found}: remove it to fetch it again")
    return file


def _austen(folder: Path) -> list[str]:
    """Chapters of the six novels (Debian package r-cran-janeaustenr, public domain)."""
    _debian(folder, "r-cran-janeaustenr")
    database = next(folder.rglob("janeaustenr/data/Rdata.rdb")).read_bytes()
    chapters: list[str] = []
    for lines in _r_vectors(database):
        text = "\n".join(lines)
        chapters += [part.strip() for part in re.split(r"\n(?=(?:CHAPTER|Chapter) )", text)]
    return [re.sub(r"\n{3,}", "\n\n", c) for c in chapters if len(c) > _SHORTEST]


def _r_vectors(database: bytes) -> Iterator[list[str]]:
    """The character vectors of an R lazy-load database: per object its size, then zlib over R's XDR serialisation."""
    while database:
        stream = zlib.decompressobj()
        body = stream.decompress(database[4:])
        database = stream.unused_data
        at = body.index(_STRSXP) + 4
        (count,) = struct.unpack_from(">I", body, at)
        at += 4
        lines = []
        for _ in range(count):
            _, length = struct.unpack_from(">II", body, at)
            lines.append(body[at + 8 : at + 8 + length].decode("utf-8"))
            at += 8 + length
        yield lines


def _kjv(folder: Path) -> list[str]:
    """Chapters of the King James Bible (Debian packages bible-kjv and bible-kjv-text, public domain)."""
    _debian(folder, "bible-kjv", "bible-kjv-text")
    program, data = next(folder.rglob("bin/bible")), next(folder.rglob("bible.data")).parent
    printed = subprocess.run([program, "-p", data, "-f", "Gen1:1-Rev22:21"], check=True, capture_output=True, text=True)
    chapters: dict[str, list[str]] = {}
    for line in printed.stdout.splitlines():
        chapter, _, verse = line.partition(":")
        chapters.setdefault(chapter, []).append(verse.partition(" ")[2])
    return ["\n".join(verses) for verses in chapters.values()]


def _wikipedia(folder: Path) -> list[str]:
    """Articles of the dump that gensim's tests carry (PyPI package gensim; CC BY-SA), without markup."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "gensim==4.4.0"]
    _run(command, "gensim")
    with zipfile.ZipFile(next(folder.glob("gensim*.whl"))) as wheel:
        dump = bz2.decompress(wheel.read(_WIKI)).decode("utf-8")
    pages = re.findall(r"<page>.*?</page>", dump, flags=re.DOTALL)
    articles = (_plain(ElementTree.fromstring(page)) for page in pages)
    return [article for article in articles if len(article) > _SHORTEST]


def _plain(page: ElementTree.Element) -> str:
    """Title and running text of a page; "" for redirects."""
    text = html.unescape(page.findtext("revision/text") or "")
    if text.lstrip().upper().startswith("#REDIRECT"):
        return ""
    text = re.sub(r"<!--.*?-->|<(ref|math|gallery|timeline|nowiki)\b[^>]*?(/>|>.*?</\1>)", "", text, flags=re.DOTALL)
    for opening, closing in ((r"\{\{", r"\}\}"), (r"\{\|", r"\|\}")):
        text = _without_nested(text, opening, closing)
    text = re.sub(r"\[\[(?:File|Image|Category|[a-z\-]{2,12}):(?:[^\[\]]|\[\[[^\]]*\]\])*\]\]", "", text)
    text = re.sub(r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]", r"\1", text)
    text = re.sub(r"\[https?://\S+ ?([^\]]*)\]", r"\1", text)
    text = re.sub(r"<[^>]+>|'{2,}", "", text)
    text = re.sub(r"(?m)^=+ *(.*?) *=+ *$", r"\1", text)
    text = re.sub(r"(?m)^[*#:;|!].*\n?", "", text)
    return f"{page.findtext('title')}\n\n" + re.sub(r"\n{3,}", "\n\n", text).strip()


def _without_nested(text: str, opening: str, closing: str) -> str:
    """`text` without what stands between matching brackets, from the innermost outwards."""
    pattern = re.compile(rf"{opening}(?:(?!{opening}|{closing}).)*?{closing}", re.DOTALL)
    while True:
        text, removed = pattern.subn("", text)
        if not removed:
            return text


def _debian(folder: Path, *packages: str) -> None:
    for package in packages:
        _run(["apt-get", "download", package], package, folder)
        _run(["dpkg-deb", "-x", next(folder.glob(f"{package}_*.deb")), folder / package], package)


def _run(command: list[str | Path], package: str, folder: Path | None = None) -> None:
    try:
        done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"{package}: {command[0]} cannot be run ({error.strerror}): the texts need it") from None
    if done.returncode:
        raise InputError(f"{package}: `{command[0]}` failed: {done.stderr.strip().splitlines()[-1]}")


TEXTS: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "austen": (_austen, "51844a8c73a84a8dc27ec70a6f48a59c5bcdda9b05443a9d57eb1ac80bd67b4c"),
    "kjv": (_kjv, "f1f8be95ff276812c5a20e52616f10e9216605234c2e17dec97cb285efe74e7b"),
    "wikipedia": (_wikipedia, "9793d14fccaf652881ee08bf9721b4fdbf318403a34039637120bc3797391efb"),
}
