"""Every bash and python block of every Markdown file, run in order as a reader would, in a directory like a clone.

So that all of it takes two minutes, a command that names a recipe gets a two-hundredth of its steps, one layer, one
thread, since two pages are read at a time, and a seed less; a loop has two rounds; the launcher is left out after its
first time on a page; what serves a page to a browser does so for seconds.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pages import OURS, ROOT, SAVED, Block, Docs

from data_prep.text import prepare

DOCS = Docs.read()
RUNNABLE = [f for f in DOCS.pages() if any(b.language in ("bash", "python") and not b.skip for b in DOCS.blocks(f))]
SHORTER = 200  # times fewer steps
TRAINS = re.compile(
    r"(accelerate launch|python|nanogpt plan|nanogpt train) [^\n#]*?(recipes/(?!eval_)\w+|mine)\.py[^\n#]*"
)
ADDED = re.compile(r" --eval_interval=2 --threads=1(?: --n_layer=1)?(?= --resume)")  # by `shorten`
NUMBERS = re.compile(r"\d[\d,.]*")


def shorten(script: str, launcher: bool = True) -> str:
    """The script with a few steps of training in the place of hundreds."""
    script = script.replace("\\\n", " ")

    def few(match: re.Match) -> str:
        command = match[0]
        if "--help" in command:
            return command
        given = re.search(r"--max_iters[= ](\d+)", command)
        steps = int(given[1]) if given else 800
        small = "" if "finetune" in command else " --n_layer=1"  # what is fine-tuned has the layers that it has
        return f"{command.rstrip()} --max_iters={steps // SHORTER} --eval_interval=2 --threads=1{small} "

    # the launcher on a page's first time alone: it takes as long as such a run
    plain = r"accelerate launch (?:--config_file \S+ )?(?=recipes/|mine)"
    script = script if launcher else re.sub(plain, "python ", script)
    script = TRAINS.sub(few, script).replace("nanogpt bench", "nanogpt bench --rounds=1 --parts=data")
    script = re.sub(r"(for flags in(?: --\S+){2})[^;]*;", r"\1;", script)  # two experiments in the place of nine
    script = re.sub(r"--train_minutes=\d+", "--train_minutes=0.005", script.replace("--seeds=3", "--seeds=2"))
    # what serves a page until Ctrl-C does so for a few seconds
    return re.sub(r"^(nanogpt (?:dashboard|playground)[^\n#&]*)", r"timeout 8 \1 || [ $? = 124 ] ", script, flags=re.M)


def clone(home: Path, text: str) -> Path:
    """What a reader has: the project's files, a text of the right name, and notes of their own."""
    home.mkdir()
    text = text.replace("FIRST:", "ROMEO:").replace("SECOND:", "JULIET:")
    for name in [*OURS, *(path.name for path in ROOT.glob("*.*") if path.is_file())]:
        if (ROOT / name).exists():
            (home / name).symlink_to(ROOT / name)
    (home / "data" / "shakespeare_char").mkdir(parents=True)
    (home / "data" / "shakespeare_char" / "input.txt").write_text(text)
    for folder in ("my_notes", "crawl"):
        (home / folder).mkdir()
        for i in range(8):
            (home / folder / f"{i}.txt").write_text(text[2000 * i : 2000 * (i + 1)])
    genes = (f'{{"text": "{"GATTACA" * 3 * i}"}}\n' for i in range(1, 40))
    (home / "genes.jsonl").write_text("".join(genes))
    for name in ("a", "b"):
        prepare([str(home / "my_notes")], home / "data" / name, say=lambda said: None)
    return home


def run(block: Block, home: Path, launcher: bool) -> str:
    """Runs a block and returns what it prints; fails with its place and its last words."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "OMP_"))}
    clean |= {
        "PATH": f"{Path(sys.executable).parent}:{clean['PATH']}",
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
    }
    clean |= {"OMP_NUM_THREADS": "1"}
    if saved := SAVED.match(block.code):
        (home / saved[1]).write_text(block.code)
        return ""
    if block.language == "bash":
        command = ["bash", "-euo", "pipefail", "-c", shorten(block.code, launcher)]
    else:
        (home / "block.py").write_text(block.code)
        command = [sys.executable, "block.py"]
    done = subprocess.run(command, cwd=home, env=clean, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{block.file}:{block.line}: exit code {done.returncode}\n{done.stderr[-3000:]}"
    return done.stdout


def read(file: str, home: Path) -> int:
    """Runs a page's blocks in order, compares what they print with what is quoted; the number of lines compared."""
    printed, compared, launched = set(), 0, False
    for block in DOCS.blocks(file):
        if block.skip or (block.needs and block.needs not in os.environ):
            continue
        if block.language in ("bash", "python"):
            printed = quoted(run(block, home, not launched))
            launched |= "accelerate launch" in block.code
        elif not block.language:  # what the block before it prints
            missing = quoted(block.code) - printed
            assert not missing, f"{file}:{block.line}: nothing printed looks like {missing}, but {printed}"
            compared += len(quoted(block.code))
    return compared


@pytest.fixture(scope="module")
def readings(request, tmp_path_factory, text):
    """Pages that are being read, two at a time, by name."""
    wanted = {item.callspec.params["file"] for item in request.session.items if "readings" in item.fixturenames}
    with ThreadPoolExecutor(2) as pool:
        homes = {file: tmp_path_factory.mktemp("reader") / "clone" for file in RUNNABLE if file in wanted}
        yield {file: pool.submit(lambda f, h: read(f, clone(h, text)), file, home) for file, home in homes.items()}


@pytest.mark.slow
@pytest.mark.parametrize("file", RUNNABLE)
def test_blocks_run_in_order(readings, file):
    compared = readings[file].result()
    assert file != "README.md" or compared > 10


def quoted(output: str) -> set[str]:
    """Lines of a run's output, apart from numbers, precision, and what depends on the text: prompt, sample, source."""
    output = re.sub(r"--prompt .*", "--prompt TEXT", re.sub(r"\bfp32\b", "bf16", output))
    output = ADDED.sub("", output)
    before, _, after = output.partition("\nnext:")
    lines = before.split("\n\n")[0].splitlines() + before.split("\n\n")[1:2] + ("next:" + after).splitlines()
    return {" ".join(NUMBERS.sub("N", line).split()) for line in lines if not line.startswith("text:")}


def test_the_shortened_command_is_the_same_but_for_its_steps():
    short = shorten("accelerate launch recipes/a.py --lr=1 \\\n  --max_iters=1600   # longer\n")
    assert short.startswith("accelerate launch recipes/a.py --lr=1 ") and short.endswith(" # longer\n")
    assert short.split()[4:7] == ["--max_iters=1600", "--max_iters=8", "--eval_interval=2"]
    assert shorten("nanogpt eval out/a") == "nanogpt eval out/a"
