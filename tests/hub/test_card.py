"""The model card: its information about a run, and that the Hub accepts it."""

import subprocess
import sys

import pytest
from shapes import CASES, CHARACTERS, make_checkpoint
from test_forged_checkpoint import seal_again

from data_prep import writer
from nanogpt import chat, checkpoint
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


RESULTS = {
    "val": {"val_loss": 2.0, "data": "nowhere"},
    "piqa": {"piqa": {"alias": "piqa", "acc,none": 0.625, "acc_stderr,none": 0.0113}, "limit": None},
    "gsm8k, 10 examples": {"gsm8k": {"exact_match,strict": 0.1, "exact_match_stderr,strict": "N/A"}, "limit": 10},
}


def test_results_of_tasks_are_in_the_card_and_those_of_whole_tasks_in_the_hubs_index(source, tmp_path):
    from huggingface_hub import ModelCard

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


def test_the_command_is_that_of_the_recipe_without_what_concerns_the_machine(source, tmp_path):
    given = ["/home/me/recipes/mine.py", "--n_layer=2", "--out_dir", "/home/me/out", "--json", "--data=/home/me/d"]
    config = checkpoint.read_json(source / "config.json")
    checkpoint.write_json(source / "config.json", config | {"command": [*given, "--resume=auto", "--seed", "2"]})
    seal_again(source)
    readme = (export.export(source, tmp_path / "export") / "README.md").read_text()
    assert "\n```bash\naccelerate launch mine.py --n_layer=2 --data=d --seed 2\n```\n" in readme


def test_a_recipe_stores_its_command(zygote, tmp_path, data):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from nanogpt import GPTConfig, TrainConfig, train\n"
        "model = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16)\n"
        f"train.main(model, TrainConfig(data={str(data)!r}, out_dir='out', batch_size=2, warmup_iters=0))\n"
    )
    command = [str(recipe), "--max_iters=1", "--device=cpu"]
    assert zygote.run(*command, cwd=tmp_path).returncode == 0
    assert card.read(tmp_path / "out" / "last").command == command


def test_a_model_that_chats_shows_its_template(chat_run, tmp_path):
    readme = (export.export(chat_run, tmp_path / "export", say=lambda text: None) / "README.md").read_text()
    assert f"```jinja\n{chat.TEMPLATE}\n```" in readme


def code_of(readme: str) -> str:
    return readme.partition("```python\n")[2].partition("```")[0]


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
