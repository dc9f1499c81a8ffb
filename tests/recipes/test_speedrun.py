"""recipes/speedrun.py: an entry is trained for its minutes, with the settings of its track."""

import json

TINY = "--n_layer=1 --n_head=2 --n_embd=16 --n_inner=32 --block_size=64 --train_minutes=0.003 --sample_tokens=0".split()


def test_a_tiny_entry_takes_its_time(data, tmp_path, recipe):
    done = recipe("speedrun", "--track=15", *TINY, f"--data={data}", "--short_block_iters=0")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "out" / "speedrun-15"
    assert 0.15 < json.loads((run / "result.json").read_text())["train_seconds"] < 60 * 0.003 + 1
    assert json.loads((run / "config.json").read_text())["train"]["weight_decay"] == 0.3
