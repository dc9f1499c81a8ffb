"""Rules for all files: what may be imported, no pickle, no code from a model directory."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
GUARDED = ROOT / "nanogpt" / "text" / "pickles.py"  # tests/text/test_pickles.py shows its guards


def imports(path: Path) -> set[str]:
    """Full names of what a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_model_needs_nothing_but_torch():
    roots = {name.split(".")[0] for name in imports(ROOT / "nanogpt" / "model.py")}
    # nanogpt: only in from_pretrained and generate
    assert roots == {"torch", "math", "collections", "dataclasses", "typing", "nanogpt"}


def test_the_core_imports_none_of_the_outer_rings():
    """Exceptions: conveniences of the package, the command line of recipes, environment variables."""
    core = [path for folder in ("nanogpt", "nanogpt/data") for path in (ROOT / folder).glob("*.py")]
    outer = tuple(f"nanogpt.{ring}." for ring in ("text", "ops", "run", "hub", "cli", "extras"))
    found = {(path.name, name) for path in core for name in imports(path) if f"{name}.".startswith(outer)}
    assert found == {
        ("model.py", "nanogpt.hub.load.load_model"),
        ("train.py", "nanogpt.run.errors.refuse_windows"),
        ("train.py", "nanogpt.run.main.main"),
        ("__init__.py", "nanogpt.hub.load.load"),
        ("__init__.py", "nanogpt.run.startup"),
        ("__init__.py", "nanogpt.text.tokenizer.Tokenizer"),
        ("__main__.py", "nanogpt.cli.main"),
    }
    libraries = {name.split(".")[0] for path in core for name in imports(path)}
    assert not libraries & {"tokenizers", "tiktoken", "transformers"}  # the core sees token ids only


def test_nothing_unpickles_but_one_guarded_file():
    for path in {*ROOT.glob("nanogpt/**/*.py"), *ROOT.glob("data_prep/*.py"), *ROOT.glob("recipes/*.py")} - {GUARDED}:
        for word in (
            r"\bpickle\.",
            r"(import|from) pickle\b",
            r"torch\.load\(",
            "allow_pickle",
            "trust_remote_code=True",
        ):
            assert not re.search(word, path.read_text()), f"{path}: {word}"


def test_no_code_from_a_model_directory_is_executed():
    """Whatever a class of transformers loads, it is told not to run the code that comes with it."""
    for path in (path for folder in ("nanogpt", "data_prep", "recipes") for path in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text())
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        hf_classes = {alias.name for node in froms if node.module == "transformers" for alias in node.names}
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            if name.endswith(".from_pretrained") and name.split(".")[0] in hf_classes | {"transformers"}:
                refused = [k.value.value for k in call.keywords if k.arg == "trust_remote_code"]
                assert refused == [False], f"{path}:{call.lineno}"


def test_the_help_of_the_command_loads_no_heavy_library_and_the_package_only_torch():
    code = """
import sys, nanogpt.cli
nanogpt.cli.make_parser()
print(*sys.modules)
from nanogpt import GPT, GPTConfig, TrainConfig, load
print(*sys.modules)
"""
    shown = subprocess.check_output([sys.executable, "-c", code], text=True)
    command, package = (set(line.split()) for line in shown.splitlines())
    heavy = {"transformers", "datasets", "trackio", "wandb", "accelerate", "tiktoken", "tokenizers"}
    assert "nanogpt.run.parser" in command and not command & {*heavy, "torch", "numpy"}
    assert "torch" in package and not package & heavy
