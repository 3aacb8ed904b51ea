"""The example server: OpenAI's completions, streamed and whole, for several clients at once, and its end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.cpp.conftest import Bundled
from ultramem_deploy.runtime.generation import greedy
from ultramem_deploy.runtime.opening import open_runner
from ultramem_deploy.runtime.tokenizer import Tokenizer

NEW, END = 40, 60
PROMPT = "the query finds"


class Server:
    """A running server; `call` gives the status and the answer."""

    def __init__(self, program: Path, bundle: Path) -> None:
        self.process = subprocess.Popen([program, bundle, "0", "4"], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[-1]

    def request(self, path: str, body: Any) -> urllib.request.Request:
        data = body if isinstance(body, bytes) else json.dumps({"temperature": 0, "max_tokens": NEW} | body).encode()
        return urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})

    def call(self, body: Any, path: str = "/v1/completions") -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(self.request(path, body), timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def events(self, body: Any, path: str = "/v1/completions") -> list[str]:
        """The data of every server-sent event."""
        with urllib.request.urlopen(self.request(path, body | {"stream": True}), timeout=60) as response:
            lines = response.read().decode().split("\n\n")
        return [line.removeprefix("data: ") for line in lines if line]


@pytest.fixture(scope="module")
def bundle(bundled: Bundled) -> Path:
    return bundled("v1")


@pytest.fixture
def server(cpp: Path, bundle: Path) -> Iterator[Server]:
    program = cpp / "bin" / "server"
    if not program.exists():
        pytest.skip("cpp-httplib was not there when the examples were built")
    server = Server(program, bundle)
    yield server
    server.process.kill()
    server.process.wait()


def expected(bundle: Path, prompt: str = PROMPT) -> str:
    tokenizer = Tokenizer(bundle)
    ids = tokenizer.encode(prompt)
    return tokenizer.decode(list(greedy(open_runner(bundle, "torch"), ids, NEW, (END,))))


def test_clients_that_come_at_once_are_all_taken(server: Server) -> None:
    """A stopped server accepts nothing: what connects then waits in the listening socket's queue."""
    host, port = server.address.removeprefix("http://").split(":")
    server.process.send_signal(signal.SIGSTOP)
    try:
        with ExitStack() as waiting:
            for _ in range(100):
                waiting.enter_context(socket.create_connection((host, int(port)), timeout=2))
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert server.call({"prompt": PROMPT})[0] == 200


def test_completions(server: Server, bundle: Path) -> None:
    text, ids = expected(bundle), Tokenizer(bundle).encode(PROMPT)
    assert len(text) > 6
    status, reply = server.call({"prompt": PROMPT})
    assert status == 200 and reply["object"] == "text_completion" and reply["choices"][0]["text"] == text
    assert reply["usage"]["prompt_tokens"] == len(ids) and reply["usage"]["completion_tokens"] > 0
    assert server.call({"prompt": ids})[1]["choices"][0]["text"] == text
    status, chat = server.call({"messages": [{"role": "user", "content": PROMPT}]}, "/v1/chat/completions")
    assert status == 200 and chat["choices"][0]["message"] == {
        "role": "assistant",
        "content": expected(bundle, f"{PROMPT}. "),
    }


def test_streams(server: Server, bundle: Path) -> None:
    *events, done = server.events({"prompt": PROMPT})
    choices = [json.loads(event)["choices"][0] for event in events]
    assert done == "[DONE]" and "".join(choice["text"] for choice in choices) == expected(bundle)
    assert choices[-1]["finish_reason"] in ("stop", "length") and len(choices) > 3
    chat = server.events({"messages": [{"role": "user", "content": PROMPT}]}, "/v1/chat/completions")
    parts = [json.loads(event)["choices"][0]["delta"]["content"] for event in chat[:-1]]
    assert "".join(parts) == expected(bundle, f"{PROMPT}. ")


def test_stop_strings(server: Server, bundle: Path) -> None:
    text = expected(bundle)
    stop = text[3:6]
    cut = text[: text.index(stop)]
    reply = server.call({"prompt": PROMPT, "stop": stop})[1]["choices"][0]
    assert (reply["text"], reply["finish_reason"]) == (cut, "stop")
    *events, _ = server.events({"prompt": PROMPT, "stop": ["never there", stop]})
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == cut


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"not JSON", "not a JSON object"),
        ({}, "prompt: is missing"),
        ({"prompt": 3}, "expected text or a list"),
        ({"prompt": [1, 61]}, "token 61 at position 1 is outside the vocabulary"),
        ({"prompt": []}, "at least one token"),
        ({"prompt": "a", "max_tokens": "x"}, "max_tokens"),
        ({"prompt": "a", "top_p": 2}, "top_p: expected"),
        ({"prompt": [1] * 600}, "600 tokens, the session holds 512"),
    ],
)
def test_wrong_requests(server: Server, body: Any, message: str) -> None:
    status, reply = server.call(body)
    assert status == 400 and message in reply["error"]["message"]
    assert server.call({"prompt": PROMPT})[0] == 200


def test_many_clients_and_one_that_leaves(server: Server, bundle: Path) -> None:
    """More clients than sessions; one hangs up in the middle of its stream."""
    text = expected(bundle)
    with urllib.request.urlopen(server.request("/v1/completions", {"prompt": PROMPT, "stream": True})) as response:
        response.read(1)
    with ThreadPoolExecutor(16) as clients:
        replies = list(clients.map(lambda _: server.call({"prompt": PROMPT}), range(32)))
    assert {(status, reply["choices"][0]["text"]) for status, reply in replies} == {(200, text)}


def test_graceful_end(server: Server, bundle: Path) -> None:
    """What runs is finished, what comes later is refused, the exit code is 0."""
    with urllib.request.urlopen(server.request("/v1/completions", {"prompt": PROMPT, "stream": True})) as response:
        first = response.read(1)
        server.process.send_signal(signal.SIGTERM)
        rest = response.read()
    assert (first + rest).decode().rstrip().endswith("[DONE]")
    assert server.process.wait(timeout=30) == 0
    with pytest.raises(urllib.error.URLError):
        server.call({"prompt": PROMPT})
