"""Other programs write with an export what the model does: transformers, `transformers serve`, transformers 4."""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import readers
import torch
from readers import NEW, READERS
from shapes import CASES, CHARACTERS, make_checkpoint
from transformers import pipeline

from nanogpt.data.tokenizer import BPETokenizer, CharTokenizer
from nanogpt.hub.export import export
from nanogpt.hub.load import load

PIPELINE = READERS["transformers' `pipeline`"]
TRANSFORMERS_4 = ["torch==2.13.0", "transformers==4.57.*"]
READ = """
import sys
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
ids, text, directories = np.load(sys.argv[1]), sys.argv[2], sys.argv[3:]
for directory in directories:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    with torch.no_grad():
        np.save(f"{directory}/read.npy", model(torch.from_numpy(ids)).logits.numpy())
    np.save(f"{directory}/tokens.npy", tokenizer(text)["input_ids"])
"""
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


@pytest.mark.manual
def test_exports_have_our_logits_and_tokens_in_transformers_4(tmp_path, gpt2_files):
    home = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, capture_output=True)
    python = str(home / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *TRANSFORMERS_4], check=True, timeout=1800)
    ids = torch.randint(70, (2, 24))
    np.save(tmp_path / "ids.npy", ids.numpy())
    cases = {case: (config, CharTokenizer(CHARACTERS)) for case, config in CASES.items()}
    bpe = dataclasses.replace(CASES["gpt2, biases, tanh"], vocab_size=50257)
    cases["gpt2, its own encoding"] = bpe, BPETokenizer.gpt2()
    exports = {}
    for case, (config, tokenizer) in cases.items():
        # an export without rope_theta would be right for the default
        make_checkpoint(tmp_path / case / "run", dataclasses.replace(config, rope_theta=500.0), tokenizer)
        exports[case] = export(tmp_path / case / "run", tmp_path / case / "export", say=lambda text: None)
    read = [python, "-c", READ, tmp_path / "ids.npy", readers.PROMPT, *exports.values()]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(map(str, read), capture_output=True, text=True, timeout=600, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for case, directory in exports.items():
        model, tokenizer, _ = load(tmp_path / case / "run")
        with torch.no_grad():
            difference = np.abs(np.load(directory / "read.npy") - model(ids).numpy()).max()
        assert difference < 1e-4, case
        assert np.load(directory / "tokens.npy").tolist() == tokenizer.encode(readers.PROMPT).tolist(), case
