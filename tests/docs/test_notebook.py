"""The notebooks of docs/, run from their first cell to their last as a reader would, with fewer steps."""

import os

import nbclient
import nbformat
import pytest
from pages import ROOT


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["quickstart", "inside"])
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path, text, monkeypatch):
    for folder in ("recipes", "data_prep", "nanogpt"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "docs").mkdir()
    (tmp_path / "data" / "shakespeare_char").mkdir(parents=True)
    beginning = "ROMEO:\nTo be, or not to be: that is the question\n"
    (tmp_path / "data" / "shakespeare_char" / "input.txt").write_text(beginning + text)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    few = "--max_iters=20 --eval_interval=10 --n_layer=1"
    source = (ROOT / "docs" / f"{name}.ipynb").read_text(encoding="utf-8")
    notebook = nbformat.reads(source.replace("--max_iters=200 --eval_interval=50", few), as_version=4)
    place = {"metadata": {"path": str(tmp_path / "docs")}}
    nbclient.NotebookClient(notebook, timeout=120, resources=place).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("step     20  validation loss" in output.get("text", "") for output in outputs)
