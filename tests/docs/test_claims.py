"""What Markdown files and docstrings claim holds, and each of many planted mistakes is found where it stands."""

import commands
import pytest
from claims import problems
from pages import Docs

from nanogpt import TrainConfig


@pytest.fixture(scope="module")
def docs() -> Docs:
    return Docs.read()


@pytest.fixture(scope="module")
def before(docs) -> set[str]:
    return set(problems(docs))


@pytest.mark.slow
def test_every_claim_holds(before):
    assert sorted(before) == []


# (file, what stands there, the mistake in its place, a word of the complaint)
MISTAKES = [
    ("README.md", "--num_samples 3", "--samples 3", "no flag --samples"),
    ("README.md", "--resume=auto --max_iters=1600", "--resume=auto --max_steps=1600", "no flag --max_steps"),
    ("README.md", "--n_embd=192 --n_inner=512", "--n_embd=190 --n_inner=512", "not divisible by n_head"),
    ("docs/running.md", "`--max_bad_steps`", "`--bad_steps`", "nothing has a flag --bad_steps"),
    ("README.md", "`--lr_schedule=constant`", "`--lr_schedule=flat`", "'flat' is not one of"),
    ("README.md", "nanogpt sample out/shakespeare --prompt", "nanogpt generate out/shakespeare --prompt", "no command"),
    ("README.md", '--prompt "ROMEO:" --num', '--prompt "ROMEO: --num', "no shell could read"),
    ("docs/publishing.md", "`nanogpt push RUN", "`nanogpt upload RUN", "no command upload"),
    (
        "README.md",
        "accelerate launch recipes/own_text.py --data data/mine",
        "accelerate launch recipes/text.py",
        "exist",
    ),
    ("data_prep/README.md", "python -m data_prep.merge", "python -m data_prep.join", "no module data_prep.join"),
    ("data_prep/README.md", "data/mine_bpe --dedup", "data/mine_bpe --unique", "no flag --unique"),
    ("data_prep/README.md", "--vocab_size 4096", "--vocab_size 4k", "invalid int value"),
    ("README.md", "accelerate_configs/ddp.yaml", "accelerate_configs/multi_gpu.yaml", "does not exist"),
    ("data_prep/README.md", "`from_datatrove.py`", "`data_prep/datatrove.py`", "data_prep/datatrove.py does not exist"),
    ("nanogpt/README.md", "| `runtime/saver.py`", "| `runtime/background.py`", "runtime/background.py"),
    ("README.md", "(LOG.md)", "(HISTORY.md)", "leads nowhere"),
    ("README.md", "`metrics.jsonl` (the curve", "`curve.jsonl` (the curve", "curve.jsonl is no file"),
    ("README.md", "`log_interval`", "`logging_interval`", "logging_interval is no name"),
    ("README.md", "771,712 parameters", "771,264 parameters", "should be 771,712"),
    ("README.md", "1.63 epochs", "1.36 epochs", "should be 1.63"),
    ("README.md", "(2.618 bits", "(2.168 bits", "bits, not 2.168"),
    ("README.md", "best validation loss 1.5362", "best validation loss 1.3562", "1.3562"),
    ("README.md", "validation loss of 1.906", "validation loss of 1.806", "loss 1.806 is not in LOG.md"),
    ("README.md", "pip install -e '.[dev]'", "pip install -e '.[develop]'", "no extra develop"),
    ("README.md", "800 steps in 168.2 s", "900 steps in 168.2 s", "main job"),
    ("recipes/shakespeare.py", "validation loss 1.53\n", "validation loss 1.35\n", "loss 1.35 is not in LOG.md"),
    ("recipes/own_text.py", "my_notes/ --out data/mine", "my_notes/ --to data/mine", "no flag --to"),
    ("recipes/README.md", "--max_new_tokens 200", "--number 200", "no flag --number"),
    ("nanogpt/hub/export.py", "exports/shakespeare", "exports/shakespeare --half", "no flag --half"),
    ("accelerate_configs/README.md", "| `fsdp2.yaml`", "| `fsdp.yaml`", "fsdp.yaml"),
    ("accelerate_configs/README.md", "--main_process_ip 10", "--main_ip 10", "accelerate launch"),
    ("accelerate_configs/README.md", "--timeout 2h", "--limit 2h", "hf has no flag --limit"),
    ("accelerate_configs/README.md", "--flavor a10g-small", "--flavor a10", "'a10' is not one of"),
    ("data_prep/README.md", "--repo-type dataset", "--repo-kind dataset", "No such option"),
    ("accelerate_configs/README.md", "-m nanogpt", "-m nanogpt.command", "no module nanogpt.command"),
    ("accelerate_configs/ddp.yaml", "recipes/shakespeare.py", "recipes/hamlet.py", "recipes/hamlet.py does not exist"),
    ("docs/settings.md", "`max_iters` | int | `5000`", "`max_iters` | int | `500`", "should be"),
    ("recipes/README.md", "nanogpt compare out/four", "nanogpt contrast out/four", "no command contrast"),
    ("recipes/README.md", "accelerate launch mine.py", "accelerate launch yours.py", "yours.py does not exist"),
    ("recipes/README.md", "(../docs/settings.md)", "(docs/settings.md)", "leads nowhere"),
    ("data_prep/README.md", "| `merge.py`", "| `join.py`", "join.py is no file"),
    ("CONTRIBUTING.md", "`tests/test_layout.py`", "`tests/test_imports.py`", "tests/test_imports.py does not exist"),
    ("nanogpt/optim.py", "`make_optimizers`", "`build_optimizers`", "build_optimizers is no name"),
    ("README.md", "0.9 to 4.1 million/s", "9.9 to 4.1 million/s", "9.9: in no section of LOG.md"),
    ("README.md", "nanoGPT 134.7 s:", "nanoGPT 134.9 s:", "134.9: in no section of LOG.md"),
    ("README.md", "Python 3.10 or newer", "Python 3.9 or newer", "the oldest Python is 3.10"),
    (".github/workflows/ci.yml", '["3.10", "3.11"', '["3.11"', "the oldest Python is 3.10"),
    ("README.md", "`--gradient_checkpointing=True`", "`--gradient_checkpointing=often`", "expected true or false"),
    ("README.md", "`TIKTOKEN_CACHE_DIR` tiktoken's", "`TIKTOKEN_CACHE` tiktoken's", "TIKTOKEN_CACHE is no name"),
    ("README.md", "`pytest -m long`", "`pytest -m lengthy`", "no marker lengthy"),
    ("README.md", "pytest -m 'alone and not long'", "pytest -m 'alone or long'", "do not have the line"),
    (
        "nanogpt/README.md",
        "| `runtime/guard.py`",
        "| `runtime/saver.py`",
        "nanogpt/run/saver.py is named in 2 rows",
    ),
    ("nanogpt/README.md", "| `view/plot.py`", "| `model_plot.py`", "model_plot.py is no file of ours"),
    ("recipes/shakespeare_nanogpt.py", "loss 1.91", "loss 1.19", "loss 1.19 is not"),
    ("accelerate_configs/README.md", "seconds (600)", "seconds (60)", "the default of --timeout is 600, not 60"),
    ("CONTRIBUTING.md", "by `HFTokenizer`", "by `HFTokeniser`", "HFTokeniser is no name"),
    ("CONTRIBUTING.md", "# known.py", "# unknown.py", "no block runs unknown.py"),
    ("CHANGELOG.md", "`nanogpt.data.mixture`", "`nanogpt.mixing`", "nanogpt.mixing does not exist"),
]


@pytest.mark.slow
@pytest.mark.parametrize("file, right, wrong, complaint", MISTAKES, ids=[mistake[2] for mistake in MISTAKES])
def test_a_mistake_in_a_text_is_named_with_file_and_line(docs, before, file, right, wrong, complaint):
    line = docs.texts[file][: docs.texts[file].index(right)].count("\n") + 1
    found = set(problems(docs.change(file, right, wrong))) - before
    assert any(complaint in problem for problem in found), found
    near = [int(problem.split(":")[1]) for problem in found if problem.startswith(f"{file}:") and complaint in problem]
    assert any(line <= number <= line + 1 for number in near) or complaint == "main job", found


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", ["recipes/shakespeare.py", "accelerate_configs/ddp.yaml", "LOG.md", "docs/settings.md"]
)
def test_a_file_that_was_moved_is_missed_where_it_is_mentioned(docs, file):
    text = docs.texts["README.md"]
    found = [problem for problem in problems(docs.without(file)) if problem.startswith("README.md:")]
    missed = [problem for problem in found if "does not exist" in problem or "leads nowhere" in problem]
    numbers = [int(problem.split(":")[1]) for problem in missed]
    assert numbers and all(file in text.splitlines()[number - 1] for number in numbers), found


def test_a_changed_default_is_missed_in_the_table(docs, monkeypatch):
    line = next(i for i, text in enumerate(docs.texts["docs/settings.md"].splitlines(), 1) if "`learning_rate`" in text)
    monkeypatch.setattr(TrainConfig.__dataclass_fields__["learning_rate"], "default", 1.0)
    assert any(problem.startswith(f"docs/settings.md:{line}: ") for problem in problems(docs))


def test_a_command_that_was_renamed_is_missed_in_every_file(docs, monkeypatch):
    real = commands.subcommands
    monkeypatch.setattr(commands, "subcommands", lambda parser: {k: v for k, v in real(parser).items() if k != "eval"})
    found = {problem.split(":")[0] for problem in problems(docs) if "nanogpt has no command eval" in problem}
    assert {"README.md", "nanogpt/commands/__init__.py", "CHANGELOG.md"} <= found


@pytest.mark.slow
def test_a_mark_needs_a_reason_and_a_block(docs):
    mark = "<!-- skip: needs the Hub, eight GPUs -->\n"
    line = docs.texts["README.md"].split(mark)[0].count("\n") + 1
    empty = problems(docs.change("README.md", mark, "<!-- skip: -->\n"))
    assert any(problem.startswith(f"README.md:{line}: a mark is <!-- skip: reason -->") for problem in empty)
    for between in ("\n", "\nsome text\n\n"):
        apart = problems(docs.change("README.md", mark, mark + between))
        assert f"README.md:{line}: this mark stands before no block" in apart
