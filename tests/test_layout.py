"""The shape of the project: the direction of imports, what they cost, no pickle, and which tests mirror what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# a module may import those before it, never those after it
ORDER = "model lock untrusted tokenizer data mixture optim config checkpoint tracking generate evaluate".split()
ORDER += "alerts follow dashboard plot compare hub convert card hf tasks playground".split()
ORDER += "launch peers interrupt saver guard plan resume report train bench nanogpt_import doctor cli".split()

# of the files tests/test_*.py, those that mirror no module, and what they are about
OTHERS = {"layout": "the project", "accelerate_configs": "the files of that folder", "hub_server": "the tests' own Hub"}

GUARDED = ROOT / "nanogpt" / "untrusted.py"  # tests/test_untrusted.py shows its guards


def imports(path: Path) -> set[str]:
    """Full names of what a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_has_its_place_in_the_order():
    assert {path.stem for path in (ROOT / "nanogpt").glob("*.py")} == {*ORDER, "__init__"}


@pytest.mark.parametrize("module", ORDER)
def test_modules_import_only_those_before_them(module):
    allowed = set(ORDER[: ORDER.index(module)])
    if module == "model":
        allowed.add("convert")  # GPT.from_pretrained, where everybody looks for it; imported when it is called
    if module == "bench":
        allowed.add("cli")  # `python -m nanogpt.bench` is `nanogpt bench`
    for name in imports(ROOT / "nanogpt" / f"{module}.py"):
        assert not name.startswith(("data_prep", "recipes")), name
        if name.startswith("nanogpt."):
            assert name.split(".")[1] in allowed | {"GPT", "GPTConfig", "TrainConfig"}, name


def test_the_model_needs_nothing_but_torch():
    roots = {name.split(".")[0] for name in imports(ROOT / "nanogpt" / "model.py")}
    assert roots - {"nanogpt"} == {"torch", "math", "dataclasses", "contextlib"}  # nanogpt: in from_pretrained alone


def test_data_prep_imports_no_recipe():
    for path in (ROOT / "data_prep").glob("*.py"):
        assert not any(name.startswith("recipes") for name in imports(path))


def test_nothing_unpickles_but_one_guarded_file():
    for path in {*ROOT.glob("nanogpt/*.py"), *ROOT.glob("data_prep/*.py"), *ROOT.glob("recipes/*.py")} - {GUARDED}:
        source = path.read_text()
        for word in ("pickle.", "import pickle", "torch.load(", "trust_remote_code"):
            assert word not in source, f"{path}: {word}"


def test_importing_nanogpt_loads_no_heavy_library():
    code = "import nanogpt, nanogpt.cli, sys; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "torch" in loaded
    heavy = {"transformers", "datasets", "trackio", "wandb", "accelerate", "tiktoken", "tokenizers"}
    assert not heavy & loaded


def test_a_file_of_tests_mirrors_a_module():
    modules = {path.stem for folder in ("nanogpt", "data_prep", "recipes") for path in (ROOT / folder).glob("*.py")}
    mirrored = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    assert mirrored - modules == OTHERS.keys()


def test_a_file_of_tests_can_be_read_in_one_sitting():
    lines = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert {name: count for name, count in lines.items() if count > 500} == {}
