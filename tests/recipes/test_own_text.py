import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
import own_text

from nanogpt.model import GPT


@pytest.mark.parametrize(
    "tokens, vocab_size, gib, n_embd",
    [
        (10**5, 65, 0, 64),  # the smallest, whatever the text
        (10**6, 65, 0, 128),  # 12 x 4 x 128^2 + 65 x 128 = 0.79 million parameters
        (2 * 10**7, 4096, 6, 384),  # 12 x 6 x 384^2 + 4096 x 384 = 12.2 million; the next takes 12 GiB
        (10**10, 50257, 80, 768),  # the largest
    ],
)
def test_the_model_grows_with_the_text_and_the_machine(tokens, vocab_size, gib, n_embd):
    model, train, _ = own_text.size(tokens, vocab_size, gib)
    assert model.n_embd == n_embd
    model.vocab_size = vocab_size
    if model.n_embd <= 384:
        count = GPT(model).get_num_params()
        assert count < 1.4 * own_text.parameters(model.n_layer, model.n_embd, vocab_size)
        assert count < 1.5 * tokens
    seen = train.max_iters * train.batch_size * train.gradient_accumulation_steps * model.block_size
    assert seen <= 4 * tokens


@pytest.mark.slow
def test_own_text_becomes_a_model_in_two_commands(tmp_path, text):
    """The README's way for a text of one's own, shortened to a few steps."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text(text)
    prepare = "-m data_prep.text notes --tokenizer bytes --out data/mine"
    train = f"{own_text.__file__} --data data/mine --out_dir out --max_iters 3 --device cpu --precision fp32"
    for command in (prepare, train):
        done = subprocess.run([sys.executable, *command.split()], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "no GPU" in done.stdout or "GiB of GPU memory" in done.stdout
    trained, prepared = (tmp_path / folder / "tokenizer.json" for folder in ("out/last", "data/mine"))
    assert trained.read_bytes() == prepared.read_bytes()


def test_without_data_it_says_how_to_make_some(tmp_path):
    command = [sys.executable, own_text.__file__, "--data", "data/nothing"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: data directory 'data/nothing' does not exist")
