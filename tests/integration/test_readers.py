"""Other programs write with an export what the model does: transformers, `transformers serve`."""

import contextlib
import functools
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import readers
from readers import NEW, READERS
from transformers import pipeline

from nanogpt.hub.export import export
from nanogpt.hub.load import load

PIPELINE = READERS["transformers' `pipeline`"]
SERVE = "from transformers.cli.transformers import app; app()"


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a run of a shape and its export, each once: (model, tokenizer, export)."""

    @functools.cache
    def make(shape: str, talks: bool = False):
        home = tmp_path_factory.mktemp("readers")
        run = readers.make_run(home / "run", shape, talks)
        exported = export(run, home / "export", say=lambda text: None)
        return *load(run)[:2], exported

    return make


@pytest.mark.parametrize("shape", PIPELINE)
def test_the_pipeline_writes_and_answers_as_the_model_does(make, shape):
    options = {"do_sample": False, "max_new_tokens": NEW}
    model, tokenizer, exported = make(shape)
    written = pipeline("text-generation", str(exported))(readers.PROMPT, **options)
    assert written[0]["generated_text"] == readers.PROMPT + readers.continuation(model, tokenizer)
    model, tokenizer, exported = make(shape, talks=True)
    written = pipeline("text-generation", str(exported))(readers.MESSAGES, **options)
    assert written[0]["generated_text"][-1]["content"] == readers.answer(model, tokenizer)


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Asks `transformers serve`, on a free port of this machine, for a completion."""
    for name in ("fastapi", "uvicorn", "openai", "pydantic"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install -e '.[serve]' -c constraints.txt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("serve")
    command = [sys.executable, "-c", SERVE, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}

    def ask(path: str, **body) -> dict:
        data = json.dumps(body | {"max_tokens": NEW, "temperature": 0}).encode() if body else None
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.loads(reply.read())

    with open(home / "log", "w") as log, subprocess.Popen(command, env=env, cwd=home, stdout=log, stderr=log) as server:
        end = time.monotonic() + 120
        while True:
            assert server.poll() is None and time.monotonic() < end, (home / "log").read_text()
            with contextlib.suppress(OSError):
                ask("health")
                break
            time.sleep(0.5)
        yield ask
        server.kill()


@pytest.mark.nightly
@pytest.mark.parametrize("shape", READERS["`transformers serve`"])
def test_transformers_serve_writes_and_answers_as_the_model_does(make, ask, shape):
    model, tokenizer, exported = make(shape)
    written = ask("v1/completions", model=str(exported), prompt=readers.PROMPT)
    assert written["choices"][0]["text"] == readers.continuation(model, tokenizer)
    model, tokenizer, exported = make(shape, talks=True)
    written = ask("v1/chat/completions", model=str(exported), messages=readers.MESSAGES)
    assert written["choices"][0]["message"]["content"] == readers.answer(model, tokenizer)
