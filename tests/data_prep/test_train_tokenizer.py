"""A byte-pair encoding that is trained on a text."""

import random
import runpy
import sys
import time

import numpy as np
import pytest
import tokenizers
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


def test_lines_that_are_left_out_are_counted(tmp_path, capsys):
    (tmp_path / "mixed.txt").write_bytes(b"one line\n" * 50 + b"\xff\n" * 3)
    assert train_tokenizer.train([str(tmp_path)], 260, errors="skip").vocab_size <= 260
    assert capsys.readouterr().out.startswith("3 lines or records were left out")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the module is already imported
def test_a_tokenizer_is_not_written_into_data(tmp_path, text_file, monkeypatch, refused):
    (tmp_path / "train.bin").write_text("theirs")
    monkeypatch.setattr(sys, "argv", ["train", str(text_file), "--out", str(tmp_path)])
    assert "nothing is overwritten" in refused(lambda: runpy.run_module("data_prep.train_tokenizer", None, "__main__"))
    assert not (tmp_path / "tokenizer.json").exists()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the module is already imported
def test_an_out_that_cannot_be_written_is_refused_before_training(text_file, monkeypatch, refused):
    monkeypatch.setattr(tokenizers.Tokenizer, "train_from_iterator", None)
    monkeypatch.setattr(sys, "argv", ["train", str(text_file), "--out", str(text_file)])
    assert str(text_file) in refused(lambda: runpy.run_module("data_prep.train_tokenizer", None, "__main__"))


def test_text_without_spaces_is_learnt_in_short_pieces(tmp_path):
    """Without a limit this takes about a minute."""
    chance = random.Random(0)
    (tmp_path / "dna.txt").write_text("".join(chance.choices("ACGT", k=150_000)))
    begin = time.process_time()
    trained = train_tokenizer.train([str(tmp_path / "dna.txt")], 1000)
    assert time.process_time() - begin < 10
    assert trained.vocab_size == 1000
    assert trained.decode(trained.encode("ACGT" * 500)) == "ACGT" * 500
