"""Pushes to a local Hub (hub_server.py) and loads from it, over HTTP: one commit, nothing lost, refusals first."""

import pytest
import shakespeare_nanogpt
from huggingface_hub import constants
from safetensors.torch import load
from shapes import CASES, CHARACTERS, make_checkpoint

from nanogpt import GPT
from nanogpt import train as training
from nanogpt.cli import main
from nanogpt.data.tokenizer import CharTokenizer


@pytest.fixture
def run(tmp_path, monkeypatch) -> str:
    """The out directory `run`, in the current directory."""
    make_checkpoint(tmp_path / "run", CASES["llama"], CharTokenizer(CHARACTERS))
    monkeypatch.chdir(tmp_path)
    return "run"


def test_push_uploads_a_verified_export_and_keeps_other_files(hub, run, monkeypatch, command):
    hub.add("alice/model", {"notes.txt": b"keep me", "tokenizer.py": b"code", "config.json": b"{}"})
    shown = command("push", run, "alice/model", "--license", "mit")
    assert f"{hub.url}/alice/model/commit/" in shown
    files = hub.files("alice/model")
    assert files["notes.txt"] == b"keep me"
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "training_curve.png"} <= files.keys()
    assert b"LlamaForCausalLM" in files["config.json"]
    assert b'pipeline("text-generation", "alice/model")' in files["README.md"]
    assert load(files["model.safetensors"])["model.norm.weight"].shape == (32,)

    monkeypatch.setenv("HF_TOKEN", "")
    assert command("sample", "alice/model", "--prompt", "ROMEO:", "--max_new_tokens", "5").startswith("ROMEO:")
    fetched = {path.rsplit("/")[-1] for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path}
    assert "config.json" in fetched and not fetched & {"notes.txt", "tokenizer.py", "README.md"}


@pytest.mark.parametrize(
    "changed, repo, words",
    [
        ({"HF_TOKEN": ""}, "alice/model", "token auth login HF_TOKEN"),
        ({"HF_TOKEN": "hf_wrong"}, "alice/model", "401 token"),
        ({"HF_TOKEN": "hf_bob"}, "alice/model", "403 alice/model"),
        ({}, "model", "'model' USER/NAME"),
        ({"ENDPOINT": "http://127.0.0.1:9"}, "alice/model", "ConnectError"),
        ({"HF_HUB_OFFLINE": True}, "alice/model", "HF_HUB_OFFLINE"),
    ],
)
def test_a_push_that_cannot_succeed_stops_before_any_work(hub, run, monkeypatch, refused, changed, repo, words):
    for name, value in changed.items():
        monkeypatch.setenv(name, value) if name == "HF_TOKEN" else monkeypatch.setattr(constants, name, value)
    said = refused(main, ["push", run, repo])
    assert all(word in said for word in words.split())
    assert not hub.repos


def test_a_model_that_cannot_be_fetched_is_named(hub, refused):
    said = refused(main, ["sample", "alice/none"])
    assert "alice/none" in said and "404" in said


def test_a_private_repository_is_made_and_a_revision_pinned(hub, run, tmp_path):
    main(["push", run, "alice/model", "--private"])
    assert hub.repos["alice/model"].private
    first = hub.repos["alice/model"].branches["main"]
    make_checkpoint(tmp_path / "other", CASES["gpt2"], CharTokenizer(CHARACTERS))
    main(["push", "other", "alice/model"])
    assert GPT.from_pretrained("alice/model", revision=first).config.position == "rope"
    assert GPT.from_pretrained("alice/model").config.position == "learned"


def test_a_recipe_asks_for_the_right_first_and_pushes_last(hub, data, tmp_path, monkeypatch, refused):
    flags = "--device=cpu --n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4 --max_iters=2".split()
    flags += [f"--data={data}", "--push_to_hub=alice/model"]
    monkeypatch.chdir(tmp_path)
    recipe = shakespeare_nanogpt.MODEL, shakespeare_nanogpt.TRAIN, None, ""
    training.main(*recipe, flags)
    assert b"GPT2LMHeadModel" in hub.files("alice/model")["config.json"]
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    assert "alice/model" in refused(training.main, *recipe, [*flags, "--out_dir=out/second"])
    assert not (tmp_path / "out" / "second").exists()
