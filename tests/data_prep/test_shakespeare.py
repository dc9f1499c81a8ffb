"""Preparing tiny Shakespeare: every source, and the error if there is none."""

import hashlib
import io
import subprocess
import urllib.request
from http.client import IncompleteRead

import numpy as np
import pytest
from texts import put, silent

from data_prep import shakespeare as data_prep

PLAY = """# A Play

## ACT I

### SCENE I. Rome.

_Enter two, with staves
and clubs_

**First Citizen**  
Before we proceed any further,  
hear me speak.

_Shouts within_

What shouts are these?

**All**  
_\\[Aside]_ Speak, sir,'\\--speak.
"""


@pytest.fixture
def no_network(monkeypatch):
    """The download and pip fail."""

    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(subprocess, "run", refuse)


def prepare(out, **options) -> dict:
    return data_prep.prepare(out, say=silent, **options)


def test_the_original_gives_nanogpts_token_files(shakespeare, tmp_path):
    meta = prepare(tmp_path, source=str(shakespeare))
    assert meta["vocab_size"] == 65
    sizes = [meta["splits"][s]["tokens"] for s in ("train", "val")]
    assert sizes == [1003854, 111540]  # as nanoGPT's readme says
    text, train = shakespeare.read_text(), np.fromfile(tmp_path / "train.bin", dtype="<u2")
    itos = sorted(set(text))
    assert train[:1000].tolist() == [itos.index(c) for c in text[:1000]] and len(train) == 1003854


def test_speeches_are_taken_out_of_the_markdown():
    assert data_prep.speeches(PLAY) == [
        "First Citizen:\nBefore we proceed any further,\nhear me speak.\nWhat shouts are these?",
        "All:\nSpeak, sir,'--speak.",
    ]


@pytest.mark.parametrize("place", ["mine/input.txt", "shakespeare_x/input.txt"])
def test_what_is_already_there_is_taken(tmp_path, text, no_network, place):
    path, said = put(tmp_path / place, text), []
    meta = data_prep.prepare(tmp_path / "mine", say=said.append)
    assert meta["source"] == path and said[0] == f"text: {path}"


def test_the_download_is_checked_by_hash_before_it_is_used(tmp_path, monkeypatch, text):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **k: io.BytesIO(text.encode()))
    monkeypatch.setattr(data_prep, "rebuild", lambda: "the plays")
    out, said = tmp_path / "mine", []
    assert data_prep.obtain(out, say=said.append).read_text() == "the plays"  # wrong hash: the next source
    assert data_prep.URL in said[0] and "it is not the expected file" in said[0]
    (out / "input.txt").unlink()
    monkeypatch.setattr(data_prep, "URL_SHA256", hashlib.sha256(text.encode()).hexdigest())
    assert data_prep.obtain(out, say=silent).read_text() == text
    assert [f.name for f in out.iterdir()] == ["input.txt"]


def test_a_download_that_breaks_off_is_a_failed_source(tmp_path, monkeypatch):
    def break_off(*args, **kwargs):
        raise IncompleteRead(b"First Citizen:", 1000)

    monkeypatch.setattr(urllib.request, "urlopen", break_off)
    monkeypatch.setattr(data_prep, "rebuild", lambda: "the plays")
    assert data_prep.obtain(tmp_path, say=silent).read_text() == "the plays"


def test_when_all_sources_fail_one_message_tells_what_was_tried(tmp_path, no_network):
    with pytest.raises(ValueError) as error:
        prepare(tmp_path / "data")
    message = str(error.value)
    assert message.count("no network in this test") == 2
    known = (data_prep.URL, data_prep.WHEEL, "input.txt")
    assert all(part in message for part in known)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "content, options, message",
    [
        ("", {}, "text is empty"),
        ("abc", {}, "the train split has 1 tokens: .* is too short"),
        ("some text", {"tokenizer": "morse"}, "tokenizer 'morse' is not one of bytes, gpt2"),
        (b"good \xff bad", {}, r"text.txt, line 1 is not UTF-8 text: convert"),
    ],
)
def test_text_and_options_that_make_no_data_are_refused(tmp_path, content, options, message):
    path = put(tmp_path / "text.txt", content)
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "data", source=path, **options)
    assert not (tmp_path / "data" / "meta.json").exists()
