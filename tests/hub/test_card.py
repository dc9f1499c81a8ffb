"""The model card tells what a run was, nothing of its machine, in metadata that the Hub's own parser reads."""

import pytest
from huggingface_hub import ModelCard
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


def test_a_card_tells_result_and_settings_but_nothing_of_the_machine(source, tmp_path):
    change(source, train={"weight_decay": 0.25, "keep_checkpoints": 9, "threads": 3, "out_dir": "out/mine"})
    to = export.export(source, tmp_path / "export", name="alice/model", license="apache-2.0")
    data, readme = ModelCard.load(to / "README.md").data, (to / "README.md").read_text()
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "transformers", "text-generation")
    for part in ("7 steps, 700 tokens", "Validation loss 2.0000", "| n_kv_head | 2 |", "| weight_decay | 0.25 |"):
        assert part in readme
    for part in ("keep_checkpoints", "threads", "out_dir", str(tmp_path)):
        assert part not in readme


RESULTS = {
    "val": {"val_loss": 2.0, "data": "nowhere"},
    "piqa": {"piqa": {"alias": "piqa", "acc,none": 0.625, "acc_stderr,none": 0.0113}, "limit": None},
    "gsm8k, 10 examples": {"gsm8k": {"exact_match,strict": 0.1, "exact_match_stderr,strict": "N/A"}, "limit": 10},
}


def test_results_of_whole_tasks_are_in_the_hubs_metadata_too(source, tmp_path):
    checkpoint.write_json(source.with_name(f"{source.name}.eval.json"), RESULTS)
    readme = export.export(source, tmp_path / "export", name="alice/model") / "README.md"
    assert (
        "| piqa | all | acc | 0.6250 | 0.0113 |\n| gsm8k | 10 | exact_match,strict | 0.1000 |  |" in readme.read_text()
    )
    data = ModelCard.load(readme).data
    (result,) = data.eval_results
    assert (data.model_name, result.dataset_name, result.metric_type, result.metric_value) == (
        *("model", "piqa", "acc", 0.625),
    )


@pytest.mark.parametrize("contents", ["{", "[]", '{"piqa": 1}', '{"piqa": {"limit": 1, "x": {"acc": [0.5]}}}'])
def test_results_that_are_damaged_are_left_out(source, contents):
    source.with_name(f"{source.name}.eval.json").write_text(contents)
    assert card.read(source).figures == []


def test_the_command_leaves_out_what_concerns_the_machine(source):
    given = ["/home/me/recipes/mine.py", "--n_layer=2", "--out_dir", "/home/me/out", "--json", "--data=/home/me/d"]
    config = checkpoint.read_json(source / "config.json")
    checkpoint.write_json(source / "config.json", config | {"command": [*given, "--resume=auto", "--seed", "2"]})
    seal_again(source)
    shown = card.training(card.read(source), curve=False)
    assert "\naccelerate launch mine.py --n_layer=2 --data=d --seed 2\n" in shown


def test_the_cards_example_runs_from_anywhere(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(source.parent)
    code = (export.export("../run", "export") / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    exec(code, {})
    shown = capsys.readouterr()
    assert len(shown.out.strip()) == 8 + 16 and "max_length" not in shown.err  # half of a context


def test_the_data_of_a_mixture_are_all_named(tmp_path, text):
    metas = [writer.write(tmp_path / n, text, "char", 0.1, f"/home/somebody/{n}.txt") for n in "ab"]
    tokens = f"{metas[0]['splits']['train']['tokens']:,} training tokens, char tokenizer"
    line = card.data_line(f"{tmp_path / 'a'}:3,{tmp_path / 'b'}:1")
    assert f"0.75 of a.txt ({tokens}), 0.25 of b.txt ({tokens})" in line
    assert "0.7 of a, 0.3 of b" in card.data_line("nowhere/a:0.7,nowhere/b:0.3")
    assert card.data_line("nowhere/c") == "c"


def test_the_loss_is_that_of_the_step(source):
    with open(source.parent / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "val_loss": 1.0, "val_bpb": 1.0}\n')
    assert "Validation loss 2.0000" in card.training(card.read(source), curve=False)
