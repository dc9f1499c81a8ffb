"""Pushing and fetching through a local Hub: real commands, real HTTP, in processes of their own."""

import json
import os
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from safetensors.torch import load
from shapes import CASES, CHARACTERS, make_checkpoint

from nanogpt.data.tokenizer import CharTokenizer
from nanogpt.hub.client import WANTED, download, make_repository

BIN = Path(sys.executable).parent


@pytest.fixture
def nanogpt(hub, tmp_path):
    """Runs the nanogpt command against the hub, in a directory with an out directory `run`."""
    make_checkpoint(tmp_path / "run", CASES["llama"], CharTokenizer(CHARACTERS))

    def run(*arguments: str, token: str | None = "hf_alice", **environment: str) -> subprocess.CompletedProcess:
        env = os.environ | hub.environment(token, tmp_path / "home") | environment
        command = [sys.executable, "-m", "nanogpt", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    return run


def test_push_uploads_a_verified_export_and_keeps_what_was_there(hub, nanogpt):
    hub.add("alice/model", {"notes.txt": b"keep me", "config.json": b"{}"})
    done = nanogpt("push", "run", "alice/model", "--license", "mit")
    assert done.returncode == 0 and f"\npushed: {hub.url}/alice/model/commit/" in done.stdout, done.stderr
    files = hub.files("alice/model")
    assert files["notes.txt"] == b"keep me"
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "training_curve.png"} <= files.keys()
    assert (
        b"LlamaForCausalLM" in files["config.json"]
        and b'pipeline("text-generation", "alice/model")' in files["README.md"]
    )
    assert load(files["model.safetensors"])["model.norm.weight"].shape == (32,)
    assert hub.repos["alice/model"].messages[-1] == "Export of run by nanogpt"

    sampled = nanogpt("sample", "alice/model", "--prompt", "ROMEO:", "--max_new_tokens", "5", token=None)
    assert sampled.returncode == 0 and sampled.stdout.startswith("ROMEO:"), sampled.stderr


def test_push_takes_results_of_tasks_along_as_the_hubs_metadata(hub, nanogpt, tmp_path):
    results = {"piqa": {"piqa": {"acc,none": 0.625}, "limit": None}}
    (tmp_path / "run" / "step-000007.eval.json").write_text(json.dumps(results))
    done = nanogpt("push", "run", "alice/model")
    assert done.returncode == 0, done.stderr
    (tmp_path / "README.md").write_bytes(hub.files("alice/model")["README.md"])
    (result,) = huggingface_hub.ModelCard.load(tmp_path / "README.md").data.eval_results
    assert (result.task_type, result.dataset_type, result.metric_type, result.metric_value) == (
        *("text-generation", "piqa", "acc", 0.625),
    )


def test_a_private_repository_is_made_and_a_branch_leaves_main_alone(hub, nanogpt):
    assert nanogpt("push", "run", "alice/new", "--private", "--revision", "trial").returncode == 0
    assert hub.repos["alice/new"].private
    assert "model.safetensors" in hub.files("alice/new", "trial") and "model.safetensors" not in hub.files("alice/new")


@pytest.mark.parametrize(
    "token, environment, repo, message",
    [
        (None, {}, "alice/model", "there is no token for the Hub: run `hf auth login`, or set HF_TOKEN"),
        ("hf_wrong", {}, "alice/model", "the Hub does not accept the token"),
        ("hf_bob", {}, "alice/model", "the Hub does not let this token write to alice/model"),
        ("hf_alice_read", {}, "alice/model", "the Hub does not let this token write to alice/model"),
        ("hf_alice", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "alice/model", "the Hub cannot be reached"),
        ("hf_alice", {"HF_HUB_OFFLINE": "1"}, "alice/model", "HF_HUB_OFFLINE is set"),
        ("hf_alice", {}, "model", "'model' is not the name of a repository on the Hub: expected USER/NAME"),
        ("hf_alice", {}, "alice/..", "nor a valid name on the Hub"),
    ],
)
def test_without_token_network_or_right_push_is_one_line_before_any_work(
    hub, nanogpt, token, environment, repo, message
):
    done = nanogpt("push", "run", repo, token=token, **environment)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not hub.lfs and not hub.repos


def test_only_files_that_a_model_needs_are_fetched():
    assert [name for name in ("tokenizer.py", "tokenizer.pkl", "model.bin") for p in WANTED if fnmatch(name, p)] == []


def test_models_that_do_not_exist_are_one_line(nanogpt):
    done = nanogpt("sample", "alice/none")
    assert done.returncode == 2 and done.stderr.startswith("error: alice/none does not exist on the Hub"), done.stderr
    done = nanogpt("sample", "alice/none", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2 and "the Hub cannot be reached" in done.stderr and done.stderr.count("\n") == 1


def test_a_revision_is_pinned(hub, nanogpt, tmp_path):
    assert nanogpt("push", "run", "alice/model").returncode == 0
    first = hub.repos["alice/model"].branches["main"]
    make_checkpoint(tmp_path / "other", CASES["gpt2"], CharTokenizer(CHARACTERS))
    assert nanogpt("push", "other", "alice/model").returncode == 0
    code = (
        "from nanogpt import GPT\n"
        f"print(GPT.from_pretrained('alice/model', revision='{first}').config.position)\n"
        "print(GPT.from_pretrained('alice/model').config.position)\n"
    )
    env = os.environ | hub.environment(None, tmp_path / "home")
    shown = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert shown.stdout.split() == ["rope", "learned"], shown.stderr


def test_a_recipe_pushes_at_the_end_and_stops_at_the_start_where_it_could_not(hub, tmp_path, data):
    recipe = Path(__file__).parents[2] / "recipes" / "shakespeare_nanogpt.py"
    flags = "--device=cpu --n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4 --max_iters=2".split()
    flags += [f"--data={data}", "--push_to_hub=alice/model"]

    def run(token: str, *more: str) -> subprocess.CompletedProcess:
        env = os.environ | hub.environment(token, tmp_path / "home")
        command = [sys.executable, str(recipe), *flags, *more]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    done = run("hf_alice")
    assert done.returncode == 0 and f"pushed: {hub.url}/alice/model" in done.stdout, done.stderr
    assert b"GPT2LMHeadModel" in hub.files("alice/model")["config.json"]
    refused = run("hf_bob", "--out_dir=out/second")
    assert refused.returncode == 2 and "does not let this token write to alice/model" in refused.stderr
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
