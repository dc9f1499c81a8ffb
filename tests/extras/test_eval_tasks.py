"""lm_eval on local tasks: in this process, and on the export by its own command."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from shapes import CASES, CHARACTERS, make_checkpoint

from nanogpt.data.tokenizer import ByteTokenizer, CharTokenizer
from nanogpt.extras.eval_tasks import first_token
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


@pytest.mark.nightly
def test_the_figures_in_process_are_those_of_lm_eval_on_the_export_and_of_arithmetic(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install -e '.[eval]'")
    texts = [CHARACTERS[i : i + 20] for i in range(0, 40, 5)]
    lines = [json.dumps({"text": text, "answer": i % 3}) for i, text in enumerate(texts)]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    (tmp_path / "tasks").mkdir()
    for name, task in (("rolling", ROLLING), ("choice", CHOICE)):
        text = task + TASK.replace("DATA", str(tmp_path / "docs.jsonl"))
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text)
    make_checkpoint(tmp_path / "run", CASES["qwen3"], CharTokenizer(CHARACTERS))
    export.export(tmp_path / "run", tmp_path / "export")
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    code = (
        "import json, sys\nfrom nanogpt.extras import eval_tasks as tasks\nfrom nanogpt.hub.load import load\n"
        "model, tokenizer, _ = load('run')\n"
        "print(json.dumps(tasks.evaluate(model, tokenizer, ['rolling', 'choice'], 'tasks')))"
    )
    options = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True, "timeout": 300}
    results = subprocess.run([sys.executable, "-c", code], **options)
    assert results.returncode == 0, results.stderr
    results = json.loads(results.stdout.splitlines()[-1])
    arguments = "--model hf --model_args pretrained=export,dtype=float32,prefix_token_id=0 --tasks rolling,choice"
    arguments += " --include_path tasks --device cpu --batch_size 8 --output_path results"
    expected = subprocess.run([sys.executable, "-m", "lm_eval", *arguments.split()], **options)
    assert expected.returncode == 0, expected.stderr
    expected = json.loads(next((tmp_path / "results").rglob("*.json")).read_text())["results"]
    assert results["choice"]["acc,none"] == expected["choice"]["acc,none"]
    found = results["rolling"]["bits_per_byte,none"]
    assert found == pytest.approx(expected["rolling"]["bits_per_byte,none"], abs=1e-6)

    model, tokenizer, _ = load(tmp_path / "run")
    nats = 0.0
    for text in texts:
        idx = torch.tensor([[0, *tokenizer.encode(text).tolist()]])
        with torch.no_grad():
            nats += model(idx[:, :-1], idx[:, 1:], reduction="sum").item()
    bits = nats / math.log(2) / sum(len(text) for text in texts)
    assert found == pytest.approx(bits, abs=1e-5)


@pytest.mark.parametrize(
    "tokenizer, first", [(ByteTokenizer(), 256), (CharTokenizer("\t\n"), 1), (CharTokenizer("ab"), 0)]
)
def test_a_text_is_read_after_the_end_of_another_else_after_a_newline(tokenizer, first):
    assert first_token(tokenizer) == first
