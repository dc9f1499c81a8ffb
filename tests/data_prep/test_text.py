"""`data_prep.text` as a command and from Python, and the scripts of known data sets."""

import gzip
import importlib
import io
import json
import random
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import documents, expected, save_as, tokens, write_jsonl

from data_prep import text
from nanogpt.data.tokenizer import load_tokenizer


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


def test_the_tokenizer_of_the_readme_works_as_it_stands(tmp_path, monkeypatch):
    readme = (Path(__file__).parents[2] / "data_prep" / "README.md").read_text()
    blocks = readme.split("```python\n")
    code = next(block for block in blocks if "class Codons" in block).split("```")[0]
    chance, namespace = random.Random(0), {}
    genes = ["".join(chance.choices("ACGT", k=3 * chance.randint(10, 100))) for _ in range(300)]
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "genes.jsonl", genes)
    exec(code, namespace)
    out = tmp_path / "data" / "genes"
    codons, loaded = namespace["Codons"](), load_tokenizer(out)
    assert (loaded.vocab_size, loaded.eot_id) == (65, 64)
    for gene in genes[:10]:
        assert loaded.encode(gene).tolist() == codons.encode(gene).tolist()
        assert loaded.decode(loaded.encode(gene)) == codons.decode(codons.encode(gene)) == gene
    ids = np.concatenate([tokens(out, split) for split in ("train", "val")])
    assert sorted(loaded.decode(ids).split("<|endoftext|>")) == sorted([*genes, ""])


def check_run(*argv: str) -> None:
    """Runs `python -m data_prep.text` in this process: it works, or says one error, in a line."""
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in "oe")
    code = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setattr(sys, "argv", ["text", *argv])
        try:
            runpy.run_path(text.__file__, run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code or 0
    stderr.seek(0)
    lines = stderr.read().splitlines()
    assert code == 0 or (code == 2 and len(lines) <= 3 and lines[-1].startswith("error: "))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["text", "a\nb", ""]), inner, max_size=3)
    ),
    max_leaves=8,
)
LINES = st.lists(VALUES.map(json.dumps), max_size=5).map("\n".join)
DEEP = st.sampled_from(["[" * 50_000, '{"text":' * 50_000, '{"text": 1' + "0" * 5000 + "}"])
MAGIC = [b"", b"%PDF-1", b"PK\3\4", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"PAR1", b"ARROW1\0\0"]
CUT = st.tuples(st.binary(max_size=200).map(gzip.compress), st.integers(0, 200))
CONTENTS = (
    st.text(max_size=300).map(lambda t: t.encode("utf-8", "surrogatepass"))
    | st.text(max_size=100).map(lambda t: t.encode("utf-16", "surrogatepass"))
    | (LINES | DEEP).map(str.encode)
    | st.tuples(st.sampled_from([*MAGIC, b"["]), st.binary(max_size=300)).map(b"".join)
    | st.text('text,"\n\r;', max_size=100).map(lambda t: b"text,b\n" + t.encode())
    | CUT.map(lambda packed: packed[0][: packed[1]])
)
ENDINGS = ["", *".txt .jsonl .json .csv .tsv .parquet .arrow .txt.gz .jsonl.zst".split()]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.sampled_from(ENDINGS),
    CONTENTS,
    st.sampled_from(["char", "bytes", "itself"]),
    st.sampled_from(["strict", "replace", "skip"]),
)
def test_no_file_ends_the_command_with_a_traceback(tmp_path_factory, ending, content, kind, errors):
    path = tmp_path_factory.mktemp("odd") / f"in{ending}"
    path.write_bytes(content)
    kind, out = str(path) if kind == "itself" else kind, str(path.parent / "out")
    check_run(str(path), "--out", out, "--tokenizer", kind, "--errors", errors)
