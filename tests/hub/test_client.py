"""Pushing and fetching through a local Hub (see hub_server.py): real HTTP, in this process."""

import json
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import shakespeare_nanogpt
from huggingface_hub import constants
from safetensors.torch import load
from shapes import CASES, CHARACTERS, make_checkpoint

from nanogpt import GPT
from nanogpt import train as training
from nanogpt.cli import main
from nanogpt.data.tokenizer import CharTokenizer
from nanogpt.hub.client import WANTED, download, make_repository


@pytest.fixture
def run(tmp_path, monkeypatch) -> str:
    """The out directory `run`, in the current directory."""
    make_checkpoint(tmp_path / "run", CASES["llama"], CharTokenizer(CHARACTERS))
    monkeypatch.chdir(tmp_path)
    return "run"


def refused(capsys, command, *arguments) -> str:
    """The one line of a command that a user has to change something for."""
    with pytest.raises(SystemExit) as exit:
        command(*arguments)
    said = capsys.readouterr().err
    assert exit.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    return said


def test_push_uploads_a_verified_export_and_keeps_what_was_there(hub, run, monkeypatch, capsys):
    hub.add("alice/model", {"notes.txt": b"keep me", "config.json": b"{}"})
    main(["push", run, "alice/model", "--license", "mit"])
    assert f"\npushed: {hub.url}/alice/model/commit/" in capsys.readouterr().out
    files = hub.files("alice/model")
    assert files["notes.txt"] == b"keep me"
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "training_curve.png"} <= files.keys()
    assert b"LlamaForCausalLM" in files["config.json"]
    assert b'pipeline("text-generation", "alice/model")' in files["README.md"]
    assert load(files["model.safetensors"])["model.norm.weight"].shape == (32,)
    assert hub.repos["alice/model"].messages[-1] == "Export of run by nanogpt"

    monkeypatch.setenv("HF_TOKEN", "")
    main(["sample", "alice/model", "--prompt", "ROMEO:", "--max_new_tokens", "5"])
    assert capsys.readouterr().out.startswith("ROMEO:")


def test_push_takes_results_of_tasks_along_as_the_hubs_metadata(hub, run, tmp_path):
    results = {"piqa": {"piqa": {"acc,none": 0.625}, "limit": None}}
    (tmp_path / "run" / "step-000007.eval.json").write_text(json.dumps(results))
    main(["push", run, "alice/model"])
    (tmp_path / "README.md").write_bytes(hub.files("alice/model")["README.md"])
    (result,) = huggingface_hub.ModelCard.load(tmp_path / "README.md").data.eval_results
    found = (result.task_type, result.dataset_type, result.metric_type, result.metric_value)
    assert found == ("text-generation", "piqa", "acc", 0.625)


def test_a_private_repository_is_made_and_a_branch_leaves_main_alone(hub, run):
    main(["push", run, "alice/new", "--private", "--revision", "trial"])
    assert hub.repos["alice/new"].private
    assert "model.safetensors" in hub.files("alice/new", "trial") and "model.safetensors" not in hub.files("alice/new")


@pytest.mark.parametrize(
    "token, repo, message",
    [
        ("", "alice/model", "there is no token for the Hub: run `hf auth login`, or set HF_TOKEN"),
        ("hf_wrong", "alice/model", "the Hub does not accept the token"),
        ("hf_bob", "alice/model", "the Hub does not let this token write to alice/model"),
        ("hf_alice_read", "alice/model", "the Hub does not let this token write to alice/model"),
        ("hf_alice", "model", "'model' is not the name of a repository on the Hub: expected USER/NAME"),
        ("hf_alice", "alice/..", "nor a valid name on the Hub"),
    ],
)
def test_without_token_or_right_push_is_one_line_before_any_work(hub, run, monkeypatch, capsys, token, repo, message):
    monkeypatch.setenv("HF_TOKEN", token)
    assert message in refused(capsys, main, ["push", run, repo])
    assert not hub.lfs and not hub.repos


@pytest.mark.parametrize(
    "name, value, message",
    [("ENDPOINT", "http://127.0.0.1:9", "cannot be reached"), ("HF_HUB_OFFLINE", True, "HF_HUB_OFFLINE is set")],
)
def test_without_a_network_push_is_one_line_before_any_work(hub, run, monkeypatch, capsys, name, value, message):
    monkeypatch.setattr(constants, name, value)
    assert message in refused(capsys, main, ["push", run, "alice/model"])
    assert not hub.requests


def test_only_files_that_a_model_needs_are_fetched():
    assert [name for name in ("tokenizer.py", "tokenizer.pkl", "model.bin") for p in WANTED if fnmatch(name, p)] == []


def test_models_that_do_not_exist_are_one_line(hub, run, monkeypatch, capsys):
    assert "alice/none does not exist on the Hub" in refused(capsys, main, ["sample", "alice/none"])
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the Hub cannot be reached" in refused(capsys, main, ["sample", "alice/none"])


def test_a_revision_is_pinned(hub, run, tmp_path):
    main(["push", run, "alice/model"])
    first = hub.repos["alice/model"].branches["main"]
    make_checkpoint(tmp_path / "other", CASES["gpt2"], CharTokenizer(CHARACTERS))
    main(["push", "other", "alice/model"])
    assert GPT.from_pretrained("alice/model", revision=first).config.position == "rope"
    assert GPT.from_pretrained("alice/model").config.position == "learned"


def test_a_recipe_pushes_at_the_end_and_stops_at_the_start_if_it_could_not(hub, data, tmp_path, monkeypatch, capsys):
    flags = "--device=cpu --n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4 --max_iters=2".split()
    flags += [f"--data={data}", "--push_to_hub=alice/model"]
    monkeypatch.chdir(tmp_path)
    recipe = shakespeare_nanogpt.MODEL, shakespeare_nanogpt.TRAIN, None, ""
    training.main(*recipe, flags)
    assert f"pushed: {hub.url}/alice/model" in capsys.readouterr().out
    assert b"GPT2LMHeadModel" in hub.files("alice/model")["config.json"]
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    said = refused(capsys, training.main, *recipe, [*flags, "--out_dir=out/second"])
    assert "does not let this token write to alice/model" in said
    assert not (tmp_path / "out" / "second").exists()


@pytest.mark.parametrize("space, kind", [(False, "model"), (True, "space")])
def test_what_is_asked_of_the_hub(monkeypatch, space, kind):
    asked = []

    def ask(name):
        return lambda *args, **kwargs: asked.append((name, *args, kwargs)) or "directory"

    calls = {name: ask(name) for name in ("whoami", "create_repo", "auth_check", "create_branch")}
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(**calls))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", ask("download"))
    make_repository("me/model", private=True, revision="trial", space=space)
    sdk = {"space_sdk": "static" if space else None}
    assert asked[1:] == [
        ("create_repo", "me/model", {"private": True, "exist_ok": True, "repo_type": kind} | sdk),
        ("auth_check", "me/model", {"write": True, "repo_type": kind}),
        ("create_branch", "me/model", {"branch": "trial", "exist_ok": True, "repo_type": kind}),
    ]
    assert download("me/model", "v1") == Path("directory")
    assert asked[-1] == ("download", "me/model", {"revision": "v1", "allow_patterns": list(WANTED)})
