"""The shape of the project: the direction of imports, what they cost, no pickle, and which tests mirror what."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import mutations
import pytest

ROOT = Path(__file__).parents[1]
# a module imports those before it, never those after it, inside functions neither
ORDER = """
model optim config lock
data.files data.pickles data.remote data.tokenizer_json data.special data.tokenizer data.tokens data.mixture data.check
rundir checkpoint metrics cache generate chat evaluate cpu chunked_loss
runtime.device runtime.sharding runtime.processes runtime.signals runtime.saver runtime.guard
view.alerts view.follow view.dashboard view.plot view.compare
hub.client hub.weights hub.card hub.load hub.from_nanogpt hub.to_nanogpt hub.export hub.to_gguf hub.to_onnx hub.to_page
plan resume console setup train
commands.options commands.tasks commands.playground commands.bench commands.sample commands.chat commands.evaluate
commands.compare commands.dashboard commands.plot commands.export commands.page commands.push commands.show_batch
commands.plan commands.train commands.check_data commands.launch_check commands.import_nanogpt
commands commands.__main__
""".split()
CORE = {
    "nanogpt",
    "nanogpt.__version__",
    "nanogpt.GPT",
    "nanogpt.GPTConfig",
    "nanogpt.TrainConfig",
}  # the package's own names

# of the files tests/**/test_*.py, those that mirror no module, and what they are about
OTHERS = {
    "test_layout": "the project",
    "test_accelerate_configs": "the files of that folder",
    "test_forged_checkpoint": "checkpoints that an attacker made",
    "test_hub_server": "the tests' own Hub",
    "test_counts": "what a step makes the host wait for, and what it copies",
    "commands/test_commands": "the `nanogpt` command",
    "performance/test_table": "the script of `make bench`",
    "performance/test_sampling": "the script that compares with llama.cpp and ONNX Runtime",
}

GUARDED = ROOT / "nanogpt" / "data" / "pickles.py"  # tests/data/test_pickles.py shows its guards


def modules() -> dict[str, Path]:
    """Every module of the package, without the package's own name, and its file; folders without code are left out."""
    found = {}
    for path in (ROOT / "nanogpt").rglob("*.py"):
        parts = path.relative_to(ROOT / "nanogpt").with_suffix("").parts
        if path.stat().st_size:
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: path for name, path in found.items() if name}


def imports(path: Path) -> set[str]:
    """Full names of what a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imported_modules(path: Path) -> set[str]:
    """The modules of this package among what a file imports: `nanogpt.hub.card.write` is hub.card."""
    found = set()
    for name in imports(path):
        if name.startswith("nanogpt") and name not in CORE:
            name = name.removeprefix("nanogpt.")
            found.add(name if name in modules() else name.rpartition(".")[0])
    return found


def test_every_module_has_its_place_in_the_order():
    assert sorted(modules()) == sorted(ORDER)


@pytest.mark.slow
@pytest.mark.parametrize("module", ORDER)
def test_modules_import_only_those_before_them(module):
    allowed = set(ORDER[: ORDER.index(module)])
    if module == "model":
        allowed |= {"hub.load", "generate"}  # GPT.from_pretrained and GPT.generate, where everybody looks for them
    assert imported_modules(modules()[module]) <= allowed
    assert not any(name.startswith(("data_prep", "recipes")) for name in imports(modules()[module]))


def test_the_model_needs_nothing_but_torch():
    roots = {name.split(".")[0] for name in imports(ROOT / "nanogpt" / "model.py")}
    assert roots - {"nanogpt"} == {
        "torch",
        "math",
        "dataclasses",
        "types",
        "typing",
    }  # nanogpt: in from_pretrained and generate alone


def test_data_prep_imports_no_recipe():
    for path in (ROOT / "data_prep").glob("*.py"):
        assert not any(name.startswith("recipes") for name in imports(path))


def test_nothing_unpickles_but_one_guarded_file():
    for path in {*ROOT.glob("nanogpt/**/*.py"), *ROOT.glob("data_prep/*.py"), *ROOT.glob("recipes/*.py")} - {GUARDED}:
        for word in (r"\bpickle\.", r"import pickle\b", r"torch\.load\(", "trust_remote_code=True"):
            assert not re.search(word, path.read_text()), f"{path}: {word}"


def test_no_code_from_a_model_directory_is_executed():
    """Whatever a class of transformers loads, it is told not to run the code that comes with it."""
    found = 0
    for path in (path for folder in ("nanogpt", "data_prep", "recipes") for path in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text())
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        hf_classes = {alias.name for node in froms if node.module == "transformers" for alias in node.names}
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            if name.endswith(".from_pretrained") and name.split(".")[0] in hf_classes | {"transformers"}:
                refused = [k.value.value for k in call.keywords if k.arg == "trust_remote_code"]
                assert refused == [False], f"{path}:{call.lineno}"
                found += 1
    assert found >= 5


@pytest.mark.slow
def test_importing_nanogpt_loads_no_heavy_library():
    code = "import nanogpt, nanogpt.commands, sys; nanogpt.commands.make_parser(only=[]); print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "torch" in loaded
    heavy = {"transformers", "datasets", "trackio", "wandb", "accelerate", "tiktoken", "tokenizers"}
    assert not heavy & loaded


def test_a_file_of_tests_mirrors_a_file():
    tests = {path.relative_to(ROOT / "tests").with_suffix("") for path in (ROOT / "tests").rglob("test_*.py")}
    tests = {path for path in tests if path.parts[0] not in ("docs", "integration", "device")}
    mirrored = {str(path.with_name(path.name.removeprefix("test_"))).replace("/", ".") for path in tests}
    there = {*modules()} | {f"{d}.{path.stem}" for d in ("data_prep", "recipes") for path in (ROOT / d).glob("*.*")}
    assert mirrored - there == {name.replace("test_", "").replace("/", ".") for name in OTHERS}


def test_the_journeys_of_the_readme_name_functions_of_three_files_at_most():
    text = (ROOT / "nanogpt" / "README.md").read_text().split("## Three journeys")[1].split("\n## ")[0]
    journeys = [re.findall(r"`(nanogpt\.[\w.]+)`", part) for part in text.split("\n**")[1:]]
    assert len(journeys) == 3
    for names in journeys:
        files = {
            max((module for module in modules() if name.startswith(f"nanogpt.{module}.")), key=len) for name in names
        }
        assert len(names) >= 5 and len(files) <= 3
        for name in names:
            module = max((module for module in modules() if name.startswith(f"nanogpt.{module}.")), key=len)
            thing = importlib.import_module(f"nanogpt.{module}")
            for part in name.removeprefix(f"nanogpt.{module}.").split("."):
                thing = getattr(thing, part)
            assert callable(thing), name


def lengths() -> dict[str, int]:
    """Lines of every file and every function of what people read."""
    found = {}
    for folder in ("nanogpt", "data_prep", "recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            found[name] = len(path.read_text().splitlines())
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    found[f"{name}: {node.name}"] = node.end_lineno - node.lineno + 1
    return found


def test_no_file_has_over_400_lines_and_no_function_over_60():
    assert {name: n for name, n in lengths().items() if n > (60 if ": " in name else 400)} == {}


def test_a_file_of_tests_can_be_read_in_one_sitting():
    lines = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert {name: count for name, count in lines.items() if count > 500} == {}


def test_the_table_of_mutations_fits_the_code():
    table = mutations.read_table()
    assert mutations.faults(table) == []
    assert len(table) == len(set(table)) >= 80


def test_faults_of_a_table_of_mutations_are_named():
    table = (
        "nanogpt/optim.py\n    no such line  =>  pass\n    import  =>  pass\n    import math  =>  import\n    why: ?\n"
    )
    gone, many, broken = mutations.faults(mutations.read_table(table))
    assert gone == "nanogpt/optim.py: no such line  =>  pass: the piece occurs 0 times"
    assert "the piece occurs" in many and "occurs 0 times" not in many and "syntax" in broken
