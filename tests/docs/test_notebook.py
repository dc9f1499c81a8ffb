"""docs/quickstart.ipynb, run from its first cell to its last as a reader would, with fewer steps."""

import os
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly
def test_the_notebook_runs_from_top_to_bottom(tmp_path, text, monkeypatch):
    for folder in ("recipes", "data_prep", "nanogpt"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "docs").mkdir()
    (tmp_path / "data" / "shakespeare_char").mkdir(parents=True)
    (tmp_path / "data" / "shakespeare_char" / "input.txt").write_text("ROMEO:\nTo be or not to b\n" + text)
    source = (ROOT / "docs" / "quickstart.ipynb").read_text(encoding="utf-8")
    few = "--max_iters=20 --eval_interval=10 --n_layer=1"
    shorter, runs = re.subn("--max_iters=200 --eval_interval=50", few, source)
    notebook = nbformat.reads(shorter, as_version=4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))

    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path / "docs")}}).execute()

    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    printed = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
    assert runs == 2 and all("step     20  validation loss" in printed[i] for i in (1, 5))
    assert any("image/png" in output.get("data", {}) for output in cells[2].outputs)
    assert printed[3].startswith("ROMEO:") and len(printed[3]) > 200
    assert re.findall(r"\d\.\d{4}|\d\.\d{3}", printed[6])
