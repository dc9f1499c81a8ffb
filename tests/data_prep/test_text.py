"""`data_prep.text` as a command and from Python, and the scripts of known data sets."""

import importlib
import runpy
import sys

import pytest
from texts import documents, expected, save_as, tokens


@pytest.mark.parametrize("name", ["openwebtext", "fineweb_edu", "tinystories"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the module is already imported
def test_scripts_of_known_data_sets_read_local_copies(tmp_path, monkeypatch, capsys, name):
    source, out = importlib.import_module(f"data_prep.{name}").__file__, tmp_path / "data"
    save_as("parquet", tmp_path, documents())
    arguments = ["--source", str(tmp_path), "--out", str(out), "--tokenizer", "bytes"]
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--val_fraction", "0.1"])
    runpy.run_path(source, run_name="__main__")
    assert tokens(out, "train").tolist() == expected(documents(), 0.1, False)
    assert "python recipes/own_text.py" in capsys.readouterr().out
