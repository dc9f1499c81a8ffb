"""The model card: its information about a run, and that the Hub accepts it."""

import subprocess
import sys

import pytest
from shapes import CASES, CHARACTERS, make_checkpoint
from test_forged_checkpoint import seal_again

from data_prep import writer
from nanogpt import checkpoint
from nanogpt.data.tokenizer import CharTokenizer
from nanogpt.hub import card, export


@pytest.fixture
def source(tmp_path):
    """A checkpoint in an out directory `run`."""
    return make_checkpoint(tmp_path / "run", CASES["qwen3"], CharTokenizer(CHARACTERS))


def change(source, **parts) -> None:
    """Changes parts of what the checkpoint says about its run."""
    config = checkpoint.read_json(source / "config.json")
    checkpoint.write_json(source / "config.json", {name: config[name] | parts.get(name, {}) for name in config})
    seal_again(source)


def test_the_hubs_own_parser_reads_it(source, tmp_path):
    from huggingface_hub import ModelCard

    data = ModelCard.load(export.export(source, tmp_path / "export", license="apache-2.0") / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "transformers", "text-generation")


def test_it_tells_result_and_settings_but_nothing_of_the_machine(source, tmp_path):
    change(source, train={"weight_decay": 0.25, "keep_checkpoints": 9, "threads": 3, "out_dir": "out/mine"})
    readme = (export.export(source, tmp_path / "export", name="alice/model") / "README.md").read_text()
    for part in ("7 steps, 700 tokens", "Validation loss 2.0000", "| n_kv_head | 2 |", "| weight_decay | 0.25 |"):
        assert part in readme
    for part in ("keep_checkpoints", "threads", "out_dir", str(tmp_path)):
        assert part not in readme


def code_of(readme: str) -> str:
    return readme.partition("```python\n")[2].partition("```")[0]


@pytest.mark.slow
def test_its_example_runs_from_anywhere(source, tmp_path, monkeypatch):
    monkeypatch.chdir(source.parent)
    code = code_of((export.export("../run", "export") / "README.md").read_text())
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=tmp_path / "elsewhere"
    )
    assert done.returncode == 0 and len(done.stdout.strip()) == 8 + 16, (
        done.stderr
    )  # half of a context of 32 characters
    assert "seem to have been set" not in done.stderr


def test_versions_are_those_of_the_training(source):
    assert "Versions" not in card.training(card.read(source), curve=False)  # an imported checkpoint knows none
    change(source, environment={"torch": "1.13.1", "python": "3.7.0"})
    assert card.training(card.read(source), curve=False).endswith("\n\nVersions: python 3.7.0, torch 1.13.1.\n")


def test_the_data_of_a_mixture_are_all_named(tmp_path, text):
    metas = [writer.write(tmp_path / n, text, "char", 0.1, f"/home/somebody/{n}.txt") for n in "ab"]
    tokens = f"{metas[0]['splits']['train']['tokens']:,} training tokens, char tokenizer"
    line = card.data_line(f"{tmp_path / 'a'}:3,{tmp_path / 'b'}:1")
    assert line == f"a mixture: 0.75 of a.txt ({tokens}), 0.25 of b.txt ({tokens})"
    assert card.data_line("nowhere/a:0.7,nowhere/b:0.3") == "a mixture: 0.7 of a, 0.3 of b"
    assert card.data_line("nowhere/c") == "c"


def test_the_loss_is_that_of_the_step(source):
    with open(source.parent / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "val_loss": 1.0, "val_bpb": 1.0}\n')
    assert "Validation loss 2.0000" in card.training(card.read(source), curve=False)
