"""Every bash and python block of every Markdown file, run in order as a reader would, in a directory like a clone.

A command that names a recipe gets a two-hundredth of its steps, one layer, one thread, and a seed less; a loop has two
rounds; what serves a page to a browser does so for seconds. `python` and `nanogpt` are shims, which fork instead of
starting Python; a launcher without options is replaced by `python` (tests/integration/test_launch.py starts it).
"""

import re
import subprocess
from pathlib import Path

import pytest
from pages import OURS, PAGES, ROOT, SAVED, blocks
from shims import write_shims
from texts import write_jsonl

from data_prep.text import prepare

BLOCKS = {file: blocks((ROOT / file).read_text(encoding="utf-8")) for file in PAGES}
RUNNABLE = [file for file in PAGES if any(b.language in ("bash", "python") and not b.skip for b in BLOCKS[file])]
SHORTER = 200  # times fewer steps
TRAINS = re.compile(
    r"(accelerate launch|python|nanogpt plan|nanogpt train) [^\n#]*?(recipes/(?!eval_)\w+|mine)\.py[^\n#]*"
)


def shorten(script: str) -> str:
    """The script with a few steps of training in the place of hundreds."""

    def few(match: re.Match) -> str:
        command = match[0].rstrip()
        if "--help" in command:
            return match[0]
        given = re.search(r"--max_iters[= ](\d+)", command)
        steps = (int(given[1]) if given else 800) // SHORTER
        small = "" if "finetune" in command else " --n_layer=1"  # what is fine-tuned has the layers that it has
        return f"{command} --max_iters={steps} --eval_interval=2 --threads=1{small} "

    script = script.replace("\\\n", " ")
    script = re.sub(r"accelerate launch (?:--config_file \S+ )?(?=recipes/|mine)", "python ", script)
    script = TRAINS.sub(few, script).replace("nanogpt bench", "nanogpt bench --rounds=1")
    script = re.sub(r"(for flags in(?: --\S+){2})[^;]*;", r"\1;", script)  # two experiments in the place of nine
    script = re.sub(r"--train_minutes=\d+", "--train_minutes=0.005", script.replace("--seeds=3", "--seeds=2"))
    return re.sub(r"^(nanogpt (?:dashboard|playground)[^\n#&]*)", r"timeout 8 \1 || [ $? = 124 ] ", script, flags=re.M)


@pytest.fixture
def home(tmp_path, text) -> Path:
    """What a reader has: the project's files, a text of the right name, and notes of their own."""
    text = text.replace("FIRST:", "ROMEO:").replace("SECOND:", "JULIET:")
    for name in [*OURS, *(path.name for path in ROOT.glob("*.*") if path.is_file())]:
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "data" / "shakespeare_char").mkdir(parents=True)
    (tmp_path / "data" / "shakespeare_char" / "input.txt").write_text(text)
    for folder in ("my_notes", "crawl"):
        (tmp_path / folder).mkdir()
        for i in range(8):
            (tmp_path / folder / f"{i}.txt").write_text(text[2000 * i : 2000 * (i + 1)])
    write_jsonl(tmp_path / "genes.jsonl", ["GATTACA" * 3 * i for i in range(1, 40)])
    for name in ("a", "b"):
        prepare([str(tmp_path / "my_notes")], tmp_path / "data" / name, say=lambda said: None)
    return tmp_path


@pytest.fixture(scope="module")
def environment(zygote, tmp_path_factory):
    """Of the shell: the shims in front, no network."""
    path = tmp_path_factory.mktemp("shims")
    write_shims(path, zygote.socket)
    return zygote.env | {"PATH": f"{path}:{zygote.env['PATH']}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def script_of(file: str, home: Path) -> str:
    """The blocks of a page as one script; what is Python becomes a file."""
    parts = []
    for block in BLOCKS[file]:
        if block.skip or block.language not in ("bash", "python"):
            continue
        if block.language == "bash":
            parts.append(shorten(block.code))
        elif saved := SAVED.match(block.code):
            (home / saved[1]).write_text(block.code)
        else:
            (home / f"block{block.line}.py").write_text(block.code)
            parts.append(f"python block{block.line}.py")
    return "\n".join(parts)


@pytest.mark.parametrize(
    "file", [file if file == "README.md" else pytest.param(file, marks=pytest.mark.nightly) for file in RUNNABLE]
)
def test_blocks_run_in_order(file, home, environment):
    shell = ["bash", "-euxo", "pipefail", "-c", script_of(file, home)]
    done = subprocess.run(shell, cwd=home, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{file}: exit code {done.returncode}\n{done.stderr[-3000:]}"
