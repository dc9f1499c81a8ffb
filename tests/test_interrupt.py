"""Ctrl-C while modules are imported."""

import subprocess
import sys

IMPORTING = """
import sys
sys.path.insert(0, {directory!r})
import nanogpt
import interrupted
"""


def test_ctrl_c_during_an_import_is_one_line_and_exit_code_130(tmp_path):
    (tmp_path / "interrupted.py").write_text("raise KeyboardInterrupt")
    code = IMPORTING.format(directory=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "\nstopped\n")


def test_ctrl_c_elsewhere_is_left_to_python():
    code = "import nanogpt; raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Traceback" in done.stderr
