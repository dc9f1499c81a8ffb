import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
import own_text

from nanogpt.model import GPT


@pytest.mark.parametrize(
    "tokens, vocab_size, gib", [(10**5, 65, 0), (10**6, 65, 0), (10**10, 50257, 80), (2 * 10**7, 4096, 6)]
)
def test_the_model_grows_with_the_text_and_the_machine(tokens, vocab_size, gib):
    model, train, _ = own_text.size(tokens, vocab_size, gib)
    model.vocab_size = vocab_size
    if model.n_embd <= 384:
        count = GPT(model).get_num_params()
        assert count < 1.4 * own_text.parameters(model.n_layer, model.n_embd, vocab_size)
        assert count < 1.5 * tokens
    seen = train.max_iters * train.batch_size * train.gradient_accumulation_steps * model.block_size
    assert seen <= 4 * tokens
    assert (model.n_embd > 128) == (gib > 0)


def test_own_text_becomes_a_model_in_two_commands(tmp_path, text):
    """The README's way for a text of one's own, shortened to a few steps."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text(text)
    recipe = str(Path(own_text.__file__))
    commands = [
        ["-m", "data_prep.text", "notes", "--tokenizer", "bytes", "--out", "data/mine"],
        [
            recipe,
            "--data",
            "data/mine",
            "--out_dir",
            "out",
            "--max_iters",
            "3",
            "--device",
            "cpu",
            "--precision",
            "fp32",
        ],
    ]
    for command in commands:
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "no GPU" in done.stdout or "GiB of GPU memory" in done.stdout
    assert (tmp_path / "out" / "last" / "tokenizer.json").read_bytes() == (
        tmp_path / "data/mine/tokenizer.json"
    ).read_bytes()


def test_without_data_it_says_how_to_make_some(tmp_path):
    command = [sys.executable, own_text.__file__, "--data", "data/nothing"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: data directory 'data/nothing' does not exist")
