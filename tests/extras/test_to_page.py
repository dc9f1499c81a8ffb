"""What `nanogpt page` writes and pushes. tests/integration/test_page.py opens such pages in a browser."""

import base64
import gzip
import os
import re
from pathlib import Path

import pytest
from shapes import CASES, CHARACTERS, make_checkpoint

from nanogpt.cli import main
from nanogpt.text.tokenizer import char_tokenizer

to_page = pytest.importorskip("nanogpt.extras.page.to_page", reason="onnx or onnxruntime is not installed")


@pytest.fixture
def run(tmp_path) -> Path:
    make_checkpoint(tmp_path / "run", CASES["llama"], char_tokenizer(CHARACTERS))
    return tmp_path / "run"


SCRIPTS = {None: "install npm", "echo 'npm error code ENOTFOUND' >&2; exit 1": "code ENOTFOUND"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_npm_or_a_network_no_work_is_done(tmp_path, run, monkeypatch, refused, script):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    if script:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "npm").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / "npm").chmod(0o755)
    assert SCRIPTS[script] in refused(main, ["page", str(run), "--to", str(tmp_path / "page")])
    assert not (tmp_path / "page").exists()


def test_files_are_kept_in_pieces_that_give_them_back(tmp_path, monkeypatch):
    monkeypatch.setattr(to_page, "PIECE", 400)
    files = {"onnx/model.onnx": os.urandom(1000), "config.json": b"{}"}
    scripts = to_page.embed(files, tmp_path)
    assert scripts == ["files/0.js", "files/1.js", "files/2.js", "files/3.js", "files/4.js"]
    texts = dict.fromkeys(files, b"")
    for script in scripts:
        name, piece = re.fullmatch(r'put\("(.*?)", "([\w+/=]*)"\);\n', (tmp_path / script).read_text()).groups()
        texts[name] += base64.b64decode(piece)  # each piece alone, as the page decodes them
    assert {name: gzip.decompress(text) for name, text in texts.items()} == files
