"""lm_eval on local tasks: the figures in this process are those of its own command on the export."""

import dataclasses
import functools
import json
import re
import subprocess
import sys

import pytest
import torch
from helpers import randomize
from shapes import CASES, CHARACTERS, make_checkpoint

from nanogpt import GPT
from nanogpt.cli import main
from nanogpt.extras import eval_tasks
from nanogpt.extras.eval_tasks import CoreTask, evaluate
from nanogpt.hub import export
from nanogpt.hub.load import load
from nanogpt.text.tokenizer import byte_tokenizer, char_tokenizer

TASK = """
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
"""
ROLLING = """task: rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
"""
CHOICE = """task: choice
output_type: multiple_choice
doc_to_text: "{{text}}"
target_delimiter: ""
doc_to_choice: ["QRS", "ABC", "abc"]
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
# of lm_eval's for BIG-bench, whose metric ignores punctuation
WRITING = """task: writing
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{continued}}"
target_delimiter: ""
generation_kwargs: {until: ["~~"], max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_punctuation: true}]
"""

TEXTS = [CHARACTERS[i : i + 20] for i in range(0, 40, 10)]


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A directory with two tasks on texts of CHARACTERS."""
    lm_eval = pytest.importorskip("lm_eval.tasks", reason="lm_eval is not installed: pip install -e '.[eval]'")
    # reading lm_eval's own 13,000 files takes long
    only_these = functools.partial(lm_eval.TaskManager, include_defaults=False, include_path=str(tmp_path))
    monkeypatch.setattr(lm_eval, "TaskManager", only_these)
    lines = [json.dumps({"text": text, "answer": i % 3}) for i, text in enumerate(TEXTS)]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    (tmp_path / "tasks").mkdir()
    for name, task in (("rolling", ROLLING), ("choice", CHOICE)):
        text = task + TASK.replace("DATA", str(tmp_path / "docs.jsonl"))
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path / "tasks"


def test_core_is_the_mean_of_centered_accuracies(tasks, monkeypatch):
    tokenizer = byte_tokenizer()
    config = dataclasses.replace(CASES["qwen3, untied"], vocab_size=tokenizer.vocab_size, block_size=512)
    model = GPT(config).eval()
    randomize(model)
    with torch.no_grad():
        model.lm_head.weight[:33] = model.lm_head.weight[127:] = 0  # it writes visible ASCII
    rows = [torch.tensor([tokenizer.encode(text).tolist()]) for text in TEXTS]
    continued = [tokenizer.decode(model.generate(row, 4, temperature=0)[0, row.size(1) :].tolist()) for row in rows]
    continued[0] += "!"  # a quarter of the answers are wrong, by a punctuation mark
    lines = [json.dumps({"text": text, "continued": answer}) for text, answer in zip(TEXTS, continued, strict=True)]
    (tasks / "writing.jsonl").write_text("\n".join(lines))
    (tasks / "writing.yaml").write_text(WRITING + TASK.replace("DATA", str(tasks / "writing.jsonl")))
    suite = {"a": CoreTask("choice", 0, 0.25, "acc,none"), "b": CoreTask("writing", 0, 0, "exact_match,strip")}
    monkeypatch.setattr(eval_tasks, "CORE", suite | {"c": CoreTask("choice", 2, 0.5, "acc,none")})

    results = dict(evaluate(model, tokenizer, ["core"]))

    right = 0
    for i, row in enumerate(rows):
        choices = [torch.cat((row, torch.tensor([tokenizer.encode(c).tolist()])), 1) for c in ("QRS", "ABC", "abc")]
        with torch.no_grad():
            losses = [model(c[:, :-1], c[:, 1:], reduction="sum").item() for c in choices]
        right += losses.index(min(losses)) == i % 3
    accuracy = right / len(rows)
    assert results["core/a"] == pytest.approx({"acc,none": accuracy, "centered,none": (accuracy - 0.25) / 0.75})
    assert results["core/b"] == pytest.approx({"exact_match,strip": 0.75, "centered,none": 0.75})
    assert results["core/c"]["centered,none"] == pytest.approx(2 * results["core/c"]["acc,none"] - 1)
    centered = [results[f"core/{name}"]["centered,none"] for name in "abc"]
    assert results["core"]["centered,none"] == pytest.approx(sum(centered) / 3)


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_a_task_that_fails_is_named_and_the_results_before_it_are_shown(
    tasks, tmp_path, monkeypatch, capsys, json_flag
):
    import lm_eval

    def simple_evaluate(lm, tasks, **options):
        if tasks == ["rolling"]:
            raise RuntimeError("Dataset scripts are no longer supported\nbut found one")
        return {"results": {tasks[0]: {"acc,none": 0.25}}}

    monkeypatch.setattr(lm_eval, "simple_evaluate", simple_evaluate)
    make_checkpoint(tmp_path / "run", CASES["qwen3"], char_tokenizer(CHARACTERS))
    with pytest.raises(SystemExit) as exit:
        main(["eval", str(tmp_path / "run"), "--tasks", "choice,rolling", "--device=cpu", *json_flag])
    out, err = capsys.readouterr()
    assert exit.value.code == 2 and re.search(r"choice +acc,none +0.2500\n", err if json_flag else out)
    assert err.splitlines()[-1].startswith("error: lm_eval cannot evaluate rolling (RuntimeError: Dataset scripts")


def test_too_little_memory_for_a_task_stays_that(tasks, monkeypatch):
    import lm_eval

    def simple_evaluate(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(lm_eval, "simple_evaluate", simple_evaluate)
    model = GPT(dataclasses.replace(CASES["gpt2"], vocab_size=257)).eval()
    with pytest.raises(torch.OutOfMemoryError):
        list(evaluate(model, byte_tokenizer(), ["choice"]))


@pytest.mark.parametrize("tokenizer, size", [(char_tokenizer(CHARACTERS), 512), (byte_tokenizer(), 256)])
def test_core_is_refused_without_an_end_of_text_token_or_room_for_an_answer(tokenizer, size):
    pytest.importorskip("lm_eval")
    config = dataclasses.replace(CASES["gpt2"], vocab_size=tokenizer.vocab_size, block_size=size)
    with pytest.raises(ValueError, match="end-of-text token and a context above 256"):
        list(evaluate(GPT(config), tokenizer, ["core"]))


@pytest.mark.nightly
def test_lm_eval_has_all_tasks_of_core():
    tasks = pytest.importorskip("lm_eval.tasks").TaskManager().all_tasks
    assert {task.task for task in eval_tasks.CORE.values()} <= set(tasks) and len(eval_tasks.CORE) == 20


@pytest.mark.nightly
def test_figures_are_those_of_lm_eval_on_the_export(tmp_path, tasks):
    make_checkpoint(tmp_path / "run", CASES["qwen3"], char_tokenizer(CHARACTERS))
    export.export(tmp_path / "run", tmp_path / "export")
    model, tokenizer, _ = load(tmp_path / "run")
    results = dict(evaluate(model, tokenizer, ["rolling", "choice"]))
    arguments = "--model hf --model_args pretrained=export,dtype=float32,prefix_token_id=0 --tasks rolling,choice"
    arguments += " --include_path tasks --device cpu --batch_size 8 --output_path results"
    subprocess.run([sys.executable, "-m", "lm_eval", *arguments.split()], cwd=tmp_path, check=True, timeout=300)
    expected = json.loads(next((tmp_path / "results").rglob("*.json")).read_text())["results"]
    assert results["choice"]["acc,none"] == expected["choice"]["acc,none"]
    bits = "bits_per_byte,none"
    assert results["rolling"][bits] == pytest.approx(expected["rolling"][bits], abs=1e-6)
