"""The example server under load: latencies, errors, memory; then killed in the middle of a stream and started again.

    make cpp && python benchmarks/cpp/load.py BUNDLE [--clients 64] [--seconds 60] [--json]

Clients send one request after another on loopback, every second one streamed. Memory is measured after a tenth of the
time and at the end: anonymous pages (sessions, scratch) and file pages (weights and tables, mapped once).
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any

import click
import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import machine

ROOT = Path(__file__).resolve().parents[2]
MOST_GROWTH = 0.05
PROMPT = "The with statement"


class Server:
    """The example server with `sessions` sessions."""

    def __init__(self, program: Path, bundle: Path, sessions: int) -> None:
        self.process = subprocess.Popen([program, bundle, "0", str(sessions)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[-1]

    def text(self, tokens: int) -> str:
        return str(json.loads(self.complete(tokens, False))["choices"][0]["text"])

    def complete(self, tokens: int, stream: bool) -> bytes:
        body = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "stream": stream}
        request = urllib.request.Request(f"{self.address}/v1/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=600) as response:
            return bytes(response.read())

    def memory(self) -> dict[str, float]:
        """RssAnon and RssFile in MB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return {name: int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=60)


def load(server: Server, clients: int, seconds: float, tokens: int) -> dict[str, Any]:
    """Latencies in seconds, errors, memory after a tenth of the time and at the end."""
    end, latencies, errors = time.monotonic() + seconds, [], []
    early: dict[str, float] = {}

    def client(number: int) -> None:
        for turn in range(10**9):
            start = time.monotonic()
            if start > end:
                return
            try:
                whole = server.complete(tokens, stream=(number + turn) % 2 == 0)
                if not whole.rstrip().endswith((b"}", b"[DONE]")):
                    errors.append("cut")
            except (OSError, HTTPException) as error:
                errors.append(repr(error))
            latencies.append(time.monotonic() - start)

    watcher = threading.Timer(seconds / 10, lambda: early.update(server.memory()))
    watcher.start()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    watcher.join()
    late = server.memory()
    quantiles = dict(zip(("p50", "p99"), np.quantile(latencies, [0.5, 0.99]).tolist(), strict=True))
    growth = late["RssAnon"] / early["RssAnon"] - 1
    return {"requests": len(latencies), "errors": errors[:5], **quantiles, "early_mb": early, "late_mb": late,
            "growth": growth}  # fmt: skip


def killed(program: Path, bundle: Path) -> dict[str, Any]:
    """A server killed in the middle of a stream: what the client sees, and that the next server says the same."""
    server = Server(program, bundle, 1)
    before = server.text(16)
    body = {"prompt": PROMPT, "max_tokens": 400, "temperature": 0, "stream": True}
    request = urllib.request.Request(f"{server.address}/v1/completions", json.dumps(body).encode())
    seen, error = b"", None
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            seen = response.read(200)
            server.process.kill()
            seen += response.read()
    except (OSError, HTTPException) as problem:
        error = type(problem).__name__
    server.process.wait()
    again = Server(program, bundle, 1)
    same = again.text(16) == before
    return {"client_error": error, "finished": b"[DONE]" in seen, "same_text_again": same, "exit_code": again.end()}


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--clients", default=64, show_default=True)
@click.option("--sessions", default=8, show_default=True)
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--tokens", default=16, show_default=True)
@click.option("--prefix", type=click.Path(path_type=Path), default=ROOT / "build/cpp", help="Where make cpp installed.")
@click.option("--json", "as_json", is_flag=True)
def main(bundle: Path, clients: int, sessions: int, seconds: float, tokens: int, prefix: Path, as_json: bool) -> None:
    """Exit code 1 where a request fails, memory grows, or the killed stream looks finished."""
    program = prefix / "bin" / "server"
    alone = Server(program, bundle, 1)
    alone.complete(tokens, False)
    one = alone.memory()
    alone.end()
    server = Server(program, bundle, sessions)
    result: dict[str, Any] = {"one_session_mb": one, **load(server, clients, seconds, tokens)}
    result |= {"exit_code": server.end(), "killed": killed(program, bundle), "machine": machine()}
    passed = not result["errors"] and result["growth"] <= MOST_GROWTH and result["exit_code"] == 0
    killing = result["killed"]
    result["passed"] = (
        passed and bool(killing["client_error"] and killing["same_text_again"]) and not killing["finished"]
    )
    for name, value in result.items():
        print(f"{name:16} {value}")
    if as_json:
        print(json.dumps(result))
    sys.exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
