"""Pushes to the Hub and loads from it: one commit, nothing lost, refusals first. The Hub is a directory here."""

import importlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import shakespeare_nanogpt
from huggingface_hub import constants, errors
from safetensors.torch import load_file
from shapes import CASES, CHARACTERS, make_checkpoint

from nanogpt import train as training
from nanogpt.cli import main
from nanogpt.text.tokenizer import char_tokenizer


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A directory in place of the Hub, where alice may write to her repositories."""
    root = tmp_path / "hub"

    def create_repo(name, private, exist_ok):
        (root / name).mkdir(parents=True, exist_ok=exist_ok)
        (root / f"{name} is {'private' if private else 'public'}").touch()

    def auth_check(name, write):
        if not name.startswith("alice/"):
            raise errors.LocalTokenNotFoundError("403 Forbidden")

    def upload_folder(repo_id, folder_path, commit_message, delete_patterns):
        for file in (root / repo_id).glob(delete_patterns):
            file.unlink()
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(name, allow_patterns):
        copy = tmp_path / "downloaded" / name
        files = [path.name for path in (root / name).iterdir()]
        copy.mkdir(parents=True)
        for file in huggingface_hub.utils.filter_repo_objects(files, allow_patterns=allow_patterns):
            shutil.copy(root / name / file, copy)
        return str(copy)

    for function in (create_repo, auth_check, upload_folder, snapshot_download):
        monkeypatch.setattr(huggingface_hub, function.__name__, function)
    return root


@pytest.fixture
def run(tmp_path, monkeypatch) -> str:
    """The out directory `run`, in the current directory."""
    make_checkpoint(tmp_path / "run", CASES["llama"], char_tokenizer(CHARACTERS))
    monkeypatch.chdir(tmp_path)
    return "run"


def test_push_uploads_a_verified_export_and_keeps_other_files(hub, run, command, tmp_path):
    repo = hub / "alice" / "model"
    repo.mkdir(parents=True)
    (repo / "notes.txt").write_text("keep me")
    (repo / "tokenizer.py").write_text("code")
    (repo / "model-00001-of-00002.safetensors").write_text("of an earlier, larger export")
    assert "/alice/model/commit/" in command("push", run, "alice/model", "--license", "mit")
    assert (repo / "notes.txt").read_text() == "keep me"
    assert [path.name for path in repo.glob("*.safetensors")] == ["model.safetensors"]
    assert 'pipeline("text-generation", "alice/model")' in (repo / "README.md").read_text()
    assert load_file(repo / "model.safetensors")["model.norm.weight"].shape == (32,)

    assert command("sample", "alice/model", "--prompt", "ROMEO:", "--max_new_tokens", "5").startswith("ROMEO:")
    fetched = {path.name for path in (tmp_path / "downloaded" / "alice" / "model").iterdir()}
    assert "config.json" in fetched and not fetched & {"notes.txt", "tokenizer.py", "README.md"}


def test_another_users_repository_is_refused_before_any_work(hub, run, refused):
    assert "403" in refused(main, ["push", run, "bob/model", "--private"])
    assert not list((hub / "bob" / "model").iterdir()) and (hub / "bob" / "model is private").exists()


@pytest.mark.parametrize(
    "changed, repo, words",
    [
        ({}, "model", "'model' USER/NAME"),
        ({"ENDPOINT": "http://127.0.0.1:9"}, "alice/model", "ConnectError network"),
        ({"HF_HUB_OFFLINE": True}, "alice/model", "HF_HUB_OFFLINE"),
    ],
)
def test_what_cannot_be_reached_is_one_line(run, monkeypatch, refused, changed, repo, words):
    for name, value in changed.items():
        monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", "http://127.0.0.1:9")
        assert f"'{repo}' is not a directory" in refused(main, ["sample", repo])
    said = refused(main, ["push", run, repo])
    assert all(word in said for word in words.split())


def test_a_recipe_asks_for_the_right_first_and_pushes_last(hub, data, tmp_path, monkeypatch, refused):
    flags = "--device=cpu --n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4 --max_iters=2".split()
    flags += [f"--data={data}"]
    monkeypatch.chdir(tmp_path)
    recipe = shakespeare_nanogpt.MODEL, shakespeare_nanogpt.TRAIN, None, ""
    training.main(*recipe, [*flags, "--push_to_hub=alice/model"])
    assert "GPT2LMHeadModel" in (hub / "alice" / "model" / "config.json").read_text()
    assert "bob/model" in refused(training.main, *recipe, [*flags, "--push_to_hub=bob/model", "--out_dir=out/second"])
    assert not (tmp_path / "out" / "second").exists()


def test_a_class_that_computes_something_else_is_not_pushed_as_a_gpt(hub, data, tmp_path, monkeypatch, capsys):
    flags = "--device=cpu --n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4 --max_iters=2".split()
    flags += [f"--data={data}", f"--out_dir={tmp_path / 'run'}", "--push_to_hub=alice/model"]
    (tmp_path / "hotter.py").write_text(
        "from nanogpt import GPT\n"
        "class Hotter(GPT):\n"
        "    def forward(self, *args, **options):\n"
        "        return 2 * super().forward(*args, **options)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module("hotter").Hotter
    recipe = shakespeare_nanogpt.MODEL, shakespeare_nanogpt.TRAIN, None, ""
    training.main(*recipe, flags, make_model=own)
    assert "not pushed (the export is wrong: logits differ" in capsys.readouterr().out
    assert not (hub / "alice" / "model" / "config.json").exists()
