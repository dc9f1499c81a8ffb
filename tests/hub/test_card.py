"""The model card tells what a run was, nothing of its machine, in metadata that the Hub's own parser reads."""

import pytest
from huggingface_hub import ModelCard
from shapes import CASES, CHARACTERS, make_checkpoint
from test_forged_checkpoint import seal_again
from texts import write_data

from nanogpt import checkpoint
from nanogpt.hub import card, export
from nanogpt.text.tokenizer import char_tokenizer


@pytest.fixture
def source(tmp_path):
    """A checkpoint in an out directory `run`."""
    return make_checkpoint(tmp_path / "run", CASES["qwen3"], char_tokenizer(CHARACTERS))


def test_a_card_tells_result_and_settings_but_nothing_of_the_machine(source, tmp_path):
    config = checkpoint.read_json(source / "config.json")
    config["train"] |= {"weight_decay": 0.25, "keep_checkpoints": 9, "threads": 3, "out_dir": "out/mine"}
    config["train"] |= {"init_from": str(tmp_path / "base"), "data": str(tmp_path / "data")}
    write_data(tmp_path / "data", CHARACTERS, source=f"notes.txt {tmp_path}/more.txt hf:OWNER/NAME")
    checkpoint.write_json(source / "config.json", config)
    seal_again(source)
    with open(source.parent / "metrics.jsonl", "a") as file:  # of a later step
        file.write('{"step": 9, "val_loss": 1.0, "val_bpb": 1.0}\n')
    to = export.export(source, tmp_path / "export", name="alice/model", license="apache-2.0")
    data, readme = ModelCard.load(to / "README.md").data, (to / "README.md").read_text()
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "transformers", "text-generation")
    for part in ("7 steps, 700 tokens", "Validation loss 2.0000", "| n_kv_head | 2 |", "| weight_decay | 0.25 |"):
        assert part in readme
    assert "| init_from | base |" in readme and "Data: notes.txt more.txt hf:OWNER/NAME (" in readme
    for part in ("keep_checkpoints", "threads", "out_dir", str(tmp_path)):
        assert part not in readme


def test_the_cards_example_runs_from_anywhere(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(source.parent)
    code = (export.export("../run", "export") / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    exec(code, {})
    assert len(capsys.readouterr().out.strip()) == 1 + 16  # the prompt and half of a context


def test_the_data_of_a_mixture_are_all_named(tmp_path, text):
    metas = [write_data(tmp_path / n, text, source=f"/home/somebody/{n}.txt") for n in "ab"]
    tokens = f"{metas[0]['splits']['train']['tokens']:,} training tokens, char tokenizer"
    line = card.data_line(f"{tmp_path / 'a'}:3,{tmp_path / 'b'}:1")
    assert f"0.75 of a.txt ({tokens}), 0.25 of b.txt ({tokens})" in line
    assert card.data_line("nowhere/c") == "c"
