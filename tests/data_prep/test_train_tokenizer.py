"""A byte-pair encoding that is trained on a text."""

import shlex
from argparse import Namespace

import numpy as np
import pytest
from texts import SCRIPTS

from data_prep import train_tokenizer


def test_a_trained_tokenizer_gives_every_text_back_and_shortens_its_own(tmp_path, text_file):
    trained = train_tokenizer.train([str(text_file)], 300)
    again = train_tokenizer.train([str(text_file)], 300)
    whole = text_file.read_text()
    assert trained.vocab_size == 300
    assert trained.eot_id == 299
    assert np.array_equal(trained.encode(whole), again.encode(whole))
    assert len(trained.encode(whole)) < 0.6 * len(whole)
    for some in SCRIPTS:
        assert trained.decode(trained.encode(some)) == some
    with pytest.raises(ValueError, match="vocab_size=100 must be at least 257"):
        train_tokenizer.train([str(text_file)], 100)


def test_the_command_after_a_trained_tokenizer_reads_the_same_text():
    args = Namespace(INPUT=["my notes/", "*.csv"], out="data/bpe", text_column="body", errors="skip")
    command = shlex.split(train_tokenizer.next_command(args))
    assert command[:5] == ["python", "-m", "data_prep.text", "my notes/", "*.csv"]
    assert "--text_column body --errors skip" in " ".join(command)
    args.text_column, args.errors = "text", "strict"
    assert train_tokenizer.next_command(args).endswith(" 'my notes/' '*.csv' --tokenizer data/bpe --out data/mine")
