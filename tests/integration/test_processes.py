"""Several processes train what one trains, and a run moves freely between them: docs/training.md's promises.

Every process is forked (see zygote.py), so that twenty runs take as long as one launch.
"""

import json
from pathlib import Path

import pytest

from data_prep import writer
from nanogpt import checkpoint
from nanogpt.run import metrics

RUNS = Path(__file__).with_name("runs.py")
MUON = {"optimizer": "muon"}
HALF = {"max_iters": 10, "eval_interval": 10}
FEW = {"max_iters": 2, "eval_interval": 1, "eval_iters": 3}  # batches that do not divide
MODERN = {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "qk_norm": True, "bias": False}


def curve(home: Path, run: str, name: str) -> dict[int, float]:
    return {line["step"]: line[name] for line in metrics.read(home / "out" / run / "metrics.jsonl") if name in line}


def run(name: str, source: str = "", **settings) -> dict:
    """Settings of the run out/NAME; one that goes on from a checkpoint of another has a `source`."""
    return {"out_dir": f"out/{name}", **({"resume": f"out/{source}"} if source else {}), **settings}


@pytest.fixture(scope="module")
def home(tmp_path_factory, text) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "out").mkdir()
    writer.write(home / "data", text, "char", 0.1, "made up")
    return home


@pytest.fixture(scope="module")
def start(zygote, home):
    """Starts runs, one after the other, on a number of processes; `fsdp` shards the model."""

    def start(number: int, *runs: dict, fsdp: bool = False, **env: str) -> list:
        return zygote.ranks(number, RUNS, *["--fsdp"] * fsdp, json.dumps(runs), cwd=home, **env)

    return start


@pytest.fixture(scope="module")
def compare(start):
    """Trains runs on one process and on two, with `fsdp` on two that share a model as well, all at the same time.

    They are out/NAME-one, -two and -fsdp. Returns the exit codes of all processes.
    """

    def compare(*runs: dict, fsdp: bool = False, **env: str) -> list[int]:
        kinds, programs = {"one": 1, "two": 2} | ({"fsdp": 2} if fsdp else {}), []
        for kind, number in kinds.items():
            named = [run | {"out_dir": f"{run['out_dir']}-{kind}"} for run in runs]
            programs += start(number, *named, fsdp=kind == "fsdp", **env)
        return [program.wait().returncode for program in programs]

    return compare


@pytest.fixture(scope="module")
def trained(start, home) -> Path:
    """Runs of 20 steps by one, two, four processes and two sharded ones, whole and stopped halfway and resumed."""

    def train(number: int, *runs: dict, **options) -> None:
        for done in [program.wait() for program in start(number, *runs, **options)]:
            assert done.returncode == 0, done.stderr

    train(
        1, run("1"), run("1-half", **HALF), run("few", **FEW), run("muon-1", **MUON), run("muon-1-half", **MUON, **HALF)
    )
    train(4, run("4"))
    moved = [run("1-to-2", "1-half/step-000010"), run("muon-1-to-2", "muon-1-half/step-000010", **MUON)]
    again = [run("2-half", **HALF), run("2-half", resume="auto"), run("muon-2-half", **MUON, **HALF)]
    train(2, run("2"), *again, run("muon-2", **MUON), *moved)
    again = [run("fsdp-half", **HALF), run("fsdp-half", resume="auto"), run("muon-fsdp-half", **MUON, **HALF)]
    moved = [run("2-to-fsdp", "2-half/step-000010", max_iters=15, eval_interval=5)]
    moved += [run("muon-1-to-fsdp", "muon-1-half/step-000010", **MUON)]
    train(2, run("fsdp"), run("fsdp-few", **FEW), *again, run("muon-fsdp", **MUON), *moved, fsdp=True)
    moved = [run(f"{name}-to-1", f"{name}-half/step-000010") for name in ("2", "fsdp")]
    moved += [run(f"muon-{name}-to-1", f"muon-{name}-half/step-000010", **MUON) for name in ("2", "fsdp")]
    train(1, *moved, run("2-to-fsdp-to-1", "2-to-fsdp/step-000015"))
    return home


@pytest.mark.parametrize("name", ["2", "4", "fsdp"])
def test_losses_and_gradient_norms_are_those_of_one_process(trained, name):
    """4 micro-batches in a step: 1 x 4, 2 x 2, 4 x 1, with dropout."""
    assert len(curve(trained, name, "train_loss")) == 20
    for value in ("train_loss", "grad_norm", "val_loss"):
        assert curve(trained, name, value) == pytest.approx(curve(trained, "1", value), abs=1e-6)
    assert curve(trained, name, "lr") == curve(trained, "1", "lr")
    ratios = curve(trained, name, "update_ratio")  # on shards over other rows
    assert ratios == pytest.approx(curve(trained, "1", "update_ratio"), rel=0.2 if name == "fsdp" else 1e-3)
    assert len(set(curve(trained, "1", "train_loss").values())) == 20


MOVES = [("1-to-2", "1"), ("2-to-1", "1"), ("2-to-fsdp", "1"), ("2-to-fsdp-to-1", "1"), ("fsdp-to-1", "1")]
MOVES += [("muon-2", "muon-1"), ("muon-1-to-2", "muon-1"), ("muon-2-to-1", "muon-1")]
MOVES += [("muon-fsdp", "muon-1"), ("muon-1-to-fsdp", "muon-1"), ("muon-fsdp-to-1", "muon-1")]


@pytest.mark.parametrize("name, whole", MOVES)
def test_a_run_that_moved_is_the_run_that_stayed(trained, name, whole):
    for value in ("train_loss", "grad_norm", "val_loss"):
        moved, stayed = curve(trained, name, value), curve(trained, whole, value)
        assert moved and moved == pytest.approx({step: stayed.get(step, moved[step]) for step in moved}, abs=1e-6)
    assert max(curve(trained, name, "train_loss")) == (15 if name == "2-to-fsdp" else 20)


@pytest.mark.parametrize("name", ["2", "fsdp"])
def test_on_the_same_number_of_processes_resuming_is_exact_to_the_bit(trained, name):
    for file in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        whole, resumed = (trained / "out" / out / "step-000020" / file for out in (name, f"{name}-half"))
        assert whole.read_bytes() == resumed.read_bytes()
    assert curve(trained, name, "train_loss") == curve(trained, f"{name}-half", "train_loss")
    losses = curve(trained, f"{name}-half", "val_loss")
    assert losses[20] == curve(trained, name, "val_loss")[20]


def test_a_quick_evaluation_is_the_same_on_sharded_processes(trained):
    losses = curve(trained, "few", "val_loss")
    assert len(losses) == 3 and losses == pytest.approx(curve(trained, "fsdp-few", "val_loss"), abs=1e-6)


def test_one_format_whatever_the_processes(trained):
    shapes = []
    for name in ("1", "2", "4", "fsdp"):
        last = checkpoint.find(trained / "out" / name)
        tensors = [checkpoint.read_tensors(last / file) for file in (checkpoint.MODEL, checkpoint.OPTIMIZER)]
        shapes.append({key: (value.shape, value.dtype) for part in tensors for key, value in part.items()})
    assert shapes[0] == shapes[1] == shapes[2] == shapes[3]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_minimal_recipe_has_the_same_losses_on_one_process_and_on_two(compare, home, optimizer):
    settings = {"max_iters": 10, "optimizer": optimizer, "sample_tokens": 0, "model": {"dropout": 0.0}}
    whole, minimal = run(f"whole-{optimizer}", **settings), run(f"minimal-{optimizer}", minimal=True, **settings)
    assert compare(whole, minimal) == [0, 0, 0]
    expected = list(curve(home, f"whole-{optimizer}-one", "train_loss").values())
    for kind in ("one", "two"):
        losses = json.loads((home / "out" / f"minimal-{optimizer}-{kind}").read_text())
        assert losses == pytest.approx(expected, abs=1e-6) and len(set(losses)) == 10


def test_two_processes_measure_what_one_does(compare, home):
    """The mean of their losses, the sum of their shares of an evaluation, and the divisor of micro-batches that were
    halved because one of them lacked the memory."""
    quick = run("quick", max_iters=4, eval_interval=2, eval_iters=3)
    assert compare(quick, run("halved", max_iters=4, room=2)) == [0, 0, 0]
    for name, evaluations in (("quick", [0, 2, 4]), ("halved", [0, 4])):
        for value in ("train_loss", "grad_norm", "val_loss", "tokens"):
            one, two = curve(home, f"{name}-one", value), curve(home, f"{name}-two", value)
            assert two == pytest.approx(one, abs=1e-6)
        assert list(curve(home, f"{name}-two", "val_loss")) == evaluations
        assert curve(home, f"{name}-two", "tokens")[4] == 4 * 4 * 4 * 16  # steps, micro-batches, sequences, tokens
    assert checkpoint.load_configs(home / "out" / "halved-two")[1].gradient_accumulation_steps == 8


def test_two_processes_read_a_mixture_and_data_at_a_url_as_one_reads_the_files(compare, home, text):
    writer.write(home / "back", text[::-1], "char", 0.1, "made up")
    steps = {"max_iters": 4, "eval_interval": 2}
    mixed = {"data": "data:0.7,back:0.3", **steps}
    url = {"data": f"file://{home}/data", **steps}
    assert compare(run("path", **steps), run("url", **url), run("mixed", **mixed)) == [0, 0, 0]
    for value in ("train_loss", "val_loss"):
        path = curve(home, "path-one", value)
        assert path and curve(home, "url-one", value) == path
        assert curve(home, "url-two", value) == pytest.approx(path, abs=1e-6)
        assert curve(home, "mixed-two", value) == pytest.approx(curve(home, "mixed-one", value), abs=1e-6) != path


@pytest.mark.parametrize("steps", [6, pytest.param(50, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("model", [{}, MODERN], ids=["gpt2", "modern"])
def test_two_sharded_processes_in_bf16_lose_what_two_copies_and_one_process_do(compare, home, model, steps):
    """No process ever holds more than its shard of a gradient (`check_shards`)."""
    name = f"bf16-{len(model)}-{steps}"
    length = {"max_iters": steps, "lr_decay_iters": steps, "eval_interval": steps, "sample_tokens": 0}
    assert compare(run(name, precision="bf16", model=model, **length), fsdp=True) == [0] * 5
    for value in ("train_loss", "val_loss"):
        shards = curve(home, f"{name}-fsdp", value)
        assert max(shards) == steps
        for other in ("two", "one"):
            assert shards == pytest.approx(curve(home, f"{name}-{other}", value), abs=2e-3)
    losses = (curve(home, f"{name}-{kind}", "train_loss") for kind in ("fsdp", "two"))
    assert next(losses) != next(losses)  # they do differ in rounding


@pytest.mark.nightly
def test_two_sharded_processes_in_fp16_lose_what_two_copies_and_one_process_do(compare, home):
    """On a CPU the others compute that in fp32."""
    assert compare(run("fp16", precision="fp16", max_iters=2), fsdp=True) == [0] * 5
    for value in ("train_loss", "val_loss"):
        shards = curve(home, "fp16-fsdp", value)
        assert max(shards) == 2
        for other in ("two", "one"):
            assert shards == pytest.approx(curve(home, f"fp16-{other}", value), abs=2e-2)


@pytest.mark.nightly
def test_compiled_blocks_lose_what_plain_ones_do_alone_copied_and_sharded(compare, home):
    few = {"max_iters": 5, "eval_interval": 5, "sample_tokens": 0, "eval_iters": 2, "model": MODERN | {"dropout": 0.0}}
    threads = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor")}
    runs = run("compiled", compile="true", **few), run("plain", compile="false", **few)
    assert compare(*runs, fsdp=True, **threads) == [0] * 5
    for processes in ("one", "two", "fsdp"):
        for value in ("train_loss", "val_loss"):
            expected = curve(home, f"plain-{processes}", value)
            assert curve(home, f"compiled-{processes}", value) == pytest.approx(expected, abs=1e-3) and expected
    assert curve(home, "compiled-one", "train_loss") != curve(home, "plain-one", "train_loss")  # it was compiled
