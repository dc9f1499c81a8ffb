"""lm_eval on local tasks: the figures in this process are those of its own command on the export."""

import json
import math
import subprocess
import sys

import pytest
import torch
from shapes import CASES, CHARACTERS, make_checkpoint

from nanogpt.data.tokenizer import ByteTokenizer, CharTokenizer
from nanogpt.extras.eval_tasks import evaluate, first_token
from nanogpt.hub import export
from nanogpt.hub.load import load

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


TEXTS = [CHARACTERS[i : i + 20] for i in range(0, 40, 5)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A run, its export, and two tasks on texts of its characters."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install -e '.[eval]'")
    lines = [json.dumps({"text": text, "answer": i % 3}) for i, text in enumerate(TEXTS)]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    (tmp_path / "tasks").mkdir()
    for name, task in (("rolling", ROLLING), ("choice", CHOICE)):
        text = task + TASK.replace("DATA", str(tmp_path / "docs.jsonl"))
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text)
    make_checkpoint(tmp_path / "run", CASES["qwen3"], CharTokenizer(CHARACTERS))
    export.export(tmp_path / "run", tmp_path / "export")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path


def nats(model, tokenizer) -> float:
    """The negative log-likelihood of the texts, each after the first token."""
    rows = [torch.tensor([[0, *tokenizer.encode(text).tolist()]]) for text in TEXTS]
    with torch.no_grad():
        return sum(model(row[:, :-1], row[:, 1:], reduction="sum").item() for row in rows)


@pytest.mark.nightly
def test_figures_are_those_of_lm_eval_on_the_export_and_of_arithmetic(place):
    model, tokenizer, _ = load(place / "run")
    results = evaluate(model, tokenizer, ["rolling", "choice"], str(place / "tasks"))
    arguments = "--model hf --model_args pretrained=export,dtype=float32,prefix_token_id=0 --tasks rolling,choice"
    arguments += " --include_path tasks --device cpu --batch_size 8 --output_path results"
    subprocess.run([sys.executable, "-m", "lm_eval", *arguments.split()], cwd=place, check=True, timeout=300)
    expected = json.loads(next((place / "results").rglob("*.json")).read_text())["results"]
    assert results["choice"]["acc,none"] == expected["choice"]["acc,none"]
    found = results["rolling"]["bits_per_byte,none"]
    assert found == pytest.approx(expected["rolling"]["bits_per_byte,none"], abs=1e-6)
    assert found == pytest.approx(nats(model, tokenizer) / math.log(2) / sum(map(len, TEXTS)), abs=1e-5)


@pytest.mark.parametrize(
    "tokenizer, first", [(ByteTokenizer(), 256), (CharTokenizer("\t\n"), 1), (CharTokenizer("ab"), 0)]
)
def test_a_text_is_read_after_the_end_of_another_else_after_a_newline(tokenizer, first):
    assert first_token(tokenizer) == first
