"""Each recipe reaches the loss that its docstring states, by the command that stands before it there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
STATED = re.compile(r"accelerate launch recipes/(\w+)\.py((?:\\\n|[^#\n])*)# validation loss (\d\.\d+)")
TRAIN_NOTHING = {"eval_gpt2"}
PIPELINE = """
import sys
sys.modules["nanogpt"] = None  # importing it raises ImportError
from transformers import pipeline
print(pipeline("text-generation", "exports/model")("ROMEO:")[0]["generated_text"])
"""


def stated(recipe: str) -> tuple[list[str], float]:
    """Flags and loss."""
    found = STATED.search((ROOT / "recipes" / f"{recipe}.py").read_text())
    return found[2].replace("\\\n", " ").split(), float(found[3])


@pytest.fixture(scope="module")
def home(tmp_path_factory, shakespeare) -> Path:
    """A new user's directory, with the original text."""
    home = tmp_path_factory.mktemp("home")
    (home / "data" / "shakespeare_char").mkdir(parents=True)
    shutil.copy(shakespeare, home / "data" / "shakespeare_char" / "input.txt")
    return home


def shell(home: Path, *command) -> str:
    """What a command prints; it must succeed."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "OMP_"))}
    clean |= {"HF_HOME": str(home / "hf")}
    done = subprocess.run(map(str, command), cwd=home, env=clean, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def train(home: Path, recipe: str) -> tuple[float, float]:
    """The loss that a recipe states and the one that it reaches, by its own command."""
    flags, loss = stated(recipe)
    printed = shell(home, BIN / "accelerate", "launch", ROOT / "recipes" / f"{recipe}.py", *flags)
    return loss, float(re.findall(r"best validation loss (\d\.\d{4})", printed)[0])


@pytest.fixture(scope="module")
def main_job(home) -> tuple[float, float]:
    """The first recipe, whose model others go on with."""
    return train(home, "shakespeare")


def test_every_recipe_that_trains_states_a_loss():
    recipes = {path.stem for path in (ROOT / "recipes").glob("*.py")} - TRAIN_NOTHING
    assert {recipe for recipe in recipes if STATED.search((ROOT / "recipes" / f"{recipe}.py").read_text())} == recipes


@pytest.mark.alone  # with the cores shared it takes five times as long
@pytest.mark.slow
def test_the_main_job_reaches_its_loss_and_transformers_writes_with_its_model(home, main_job):
    loss, reached = main_job
    assert reached == pytest.approx(loss, abs=0.02)  # other seeds spread by 0.01
    exported = shell(home, BIN / "nanogpt", "export", "out/shakespeare", "--to", "exports/model")
    assert float(re.search(r"verified: logits differ by (\S+)", exported)[1]) < 1e-4
    assert "ROMEO:" in shell(home, sys.executable, "-c", PIPELINE)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe, tolerance",
    [
        ("own_text", 0.03),
        ("finetune_shakespeare", 0.02),
        ("python_stdlib", 0.15),  # the text is another one with another Python
        pytest.param("shakespeare_nanogpt", 0.02, marks=pytest.mark.long),
    ],
)
def test_a_recipe_reaches_the_loss_that_it_states(home, main_job, recipe, tolerance):
    loss, reached = train(home, recipe)
    assert reached == pytest.approx(loss, abs=tolerance)
