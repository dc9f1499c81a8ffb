"""The notebooks of docs/, run from their first cell to their last as a reader would, with fewer steps."""

import os
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def execute(tmp_path, text, monkeypatch):
    for folder in ("recipes", "data_prep", "nanogpt"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "docs").mkdir()
    (tmp_path / "data" / "shakespeare_char").mkdir(parents=True)
    beginning = "ROMEO:\nTo be, or not to be: that is the question\n"
    (tmp_path / "data" / "shakespeare_char" / "input.txt").write_text(beginning + text)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))

    def run(name: str, runs: int):
        """The code cells after their execution, and what each printed; `runs` of them train."""
        source = (ROOT / "docs" / name).read_text(encoding="utf-8")
        few = "--max_iters=20 --eval_interval=10 --n_layer=1"
        shorter, found = re.subn("--max_iters=200 --eval_interval=50", few, source)
        assert found == runs
        notebook = nbformat.reads(shorter, as_version=4)
        place = {"metadata": {"path": str(tmp_path / "docs")}}
        nbclient.NotebookClient(notebook, timeout=120, resources=place).execute()
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        return cells, ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]

    return run


def has_picture(cell) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


@pytest.mark.nightly
def test_the_quickstart_runs_from_top_to_bottom(execute):
    cells, printed = execute("quickstart.ipynb", runs=2)
    assert all("step     20  validation loss" in printed[i] for i in (1, 5))
    assert has_picture(cells[2])
    assert printed[3].startswith("ROMEO:") and len(printed[3]) > 200
    assert re.findall(r"\d\.\d{4}|\d\.\d{3}", printed[6])


@pytest.mark.nightly
def test_the_look_inside_computes_by_hand_what_the_model_does(execute):
    cells, printed = execute("inside.ipynb", runs=1)
    assert float(printed[2].rpartition(" by ")[2]) < 1e-4
    assert has_picture(cells[4])
    text = re.search("text *(.*)\n", printed[5])[1]
    assert len(re.search("layer 1   (.*)\n", printed[5])[1]) == len(text)
    losses = [float(loss) for loss in re.findall(r"^ *'.+' +(\d+\.\d\d)", printed[6], flags=re.MULTILINE)]
    assert len(losses) == len(text) - 1
    assert float(re.search(r"mean +(.*)", printed[6])[1]) == pytest.approx(sum(losses) / len(losses), abs=0.01)
