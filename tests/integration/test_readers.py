"""Programs of transformers that write with an export: the tokens are those of the model itself."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import readers
from readers import READERS

from nanogpt.hub.export import export
from nanogpt.hub.load import load

NEEDED = ("fastapi", "uvicorn", "openai", "pydantic")
SERVE = "from transformers.cli.transformers import app; app()"


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a run of a shape and its export, each once: (run, export)."""
    home, made = tmp_path_factory.mktemp("readers"), {}

    def make(shape: str, talks: bool = False) -> tuple[Path, Path]:
        if (shape, talks) not in made:
            run = readers.make_run(home / f"{shape}-{talks}" / "run", shape, talks)
            made[shape, talks] = run, export(run, home / f"{shape}-{talks}" / "export", say=lambda text: None)
        return made[shape, talks]

    return make


@pytest.mark.parametrize("shape", READERS["transformers' `pipeline`"])
def test_the_pipeline_writes_the_models_greedy_tokens(make, shape):
    from transformers import pipeline

    run, exported = make(shape)
    written = pipeline("text-generation", str(exported))(readers.PROMPT, do_sample=False, max_new_tokens=readers.NEW)
    assert written[0]["generated_text"] == readers.PROMPT + readers.continuation(*load(run)[:2])


@pytest.mark.parametrize("shape", READERS["transformers' `pipeline`, given messages"])
def test_the_pipeline_answers_messages_as_the_model_does(make, shape):
    from transformers import pipeline

    run, exported = make(shape, talks=True)
    written = pipeline("text-generation", str(exported))(readers.MESSAGES, do_sample=False, max_new_tokens=readers.NEW)
    answer = readers.answer(*load(run)[:2])
    assert written[0]["generated_text"] == [*readers.MESSAGES, {"role": "assistant", "content": answer}]


def ask(url: str, body: dict | None = None, timeout: float = 60) -> dict:
    """The answer of a server to JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        return json.loads(reply.read())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of `transformers serve`, on a free port of this machine alone."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed: pip install -e '.[serve]' -c constraints.txt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("serve")
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    command = [sys.executable, "-c", SERVE, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with open(home / "log", "w") as log:
        process = subprocess.Popen(command, env=env, cwd=home, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < end, (home / "log").read_text()
            try:
                ask(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.mark.nightly
@pytest.mark.parametrize("shape", READERS["`transformers serve`"])
def test_transformers_serve_writes_and_answers_as_the_model_does(make, server, shape):
    options = {"max_tokens": readers.NEW, "temperature": 0}
    run, exported = make(shape)
    written = ask(f"{server}/completions", {"model": str(exported), "prompt": readers.PROMPT, **options})
    assert written["choices"][0]["text"] == readers.continuation(*load(run)[:2])
    run, exported = make(shape, talks=True)
    written = ask(f"{server}/chat/completions", {"model": str(exported), "messages": readers.MESSAGES, **options})
    assert written["choices"][0]["message"]["content"] == readers.answer(*load(run)[:2])
