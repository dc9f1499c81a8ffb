"""Several processes train what one trains, and a run moves freely between them: docs/running.md's promises.

Every process is forked (see zygote.py), so that forty runs take as long as one launch.
"""

import json
from pathlib import Path

import pytest
from helpers import curve
from texts import write_data

from nanogpt import checkpoint

ROOT = Path(__file__).parents[2]
RUNS = Path(__file__).with_name("runs.py")
BOTH = (checkpoint.MODEL, checkpoint.OPTIMIZER)
MODERN = {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "qk_norm": True, "bias": False}
# Muon: 9 matrices of 35 x 25 (three in a parameter), 6 of 67 x 25 (two in one), 3 of 25 x 35, 3 of 25 x 67: no number
# of rows, columns or matrices divides by 2 and by 4
ODD = {"n_layer": 3, "n_embd": 25, "n_head": 5, "head_dim": 7, "n_inner": 67, "norm": "rmsnorm", "mlp": "swiglu"}
SETTINGS = {"adamw": {"optimizer": "adamw"}, "muon": {"optimizer": "muon", "model": ODD}}
KINDS = {"1": 1, "2": 2, "4": 4, "fsdp": 2}  # processes; those of fsdp share a model, the others have copies
MOVES = ["1-2", "2-1", "2-2", "2-fsdp", "fsdp-1", "fsdp-fsdp"]


@pytest.fixture(scope="module")
def home(tmp_path_factory, text) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "out").mkdir()
    write_data(home / "data", text)
    return home


@pytest.fixture(scope="module")
def train(zygote, home):
    """Trains runs by their names, one after the other: on each kind of processes, all kinds at the same time."""

    def train(runs_of_kinds: dict[str, dict[str, dict]], **env: str) -> None:
        programs = []
        for kind, runs in runs_of_kinds.items():
            runs = [{"out_dir": f"out/{name}", **settings} for name, settings in runs.items()]
            options = ["--fsdp"] if kind == "fsdp" else []
            programs += zygote.ranks(KINDS[kind], RUNS, *options, json.dumps(runs), cwd=home, **env)
        for done in [program.wait() for program in programs]:
            assert done.returncode == 0, done.stderr

    return train


@pytest.fixture(scope="module")
def compare(train, home):
    """Trains runs on several kinds of processes, as out/NAME-KIND; asserts that their curves are equal."""

    def compare(runs: dict[str, dict], kinds=("1", "2"), abs: float = 1e-6, **env: str) -> None:
        train({kind: {f"{name}-{kind}": dict(settings) for name, settings in runs.items()} for kind in kinds}, **env)
        for name, settings in runs.items():
            for value in ("train_loss", "val_loss"):
                curves = [curve(home / "out" / f"{name}-{kind}", value) for kind in kinds]
                assert max(curves[0]) == settings["max_iters"]
                assert all(each == pytest.approx(curves[0], abs=abs) for each in curves[1:])

    return compare


@pytest.fixture(scope="module")
def moved(train, home) -> Path:
    """Runs of 12 steps, out/OPTIMIZER-KIND, and out/OPTIMIZER-KIND-KIND of two halves on different processes."""
    half = {"max_iters": 6, "eval_interval": 6}
    starts, ends = {kind: {} for kind in KINDS}, {kind: {} for kind in KINDS}
    for optimizer, settings in SETTINGS.items():
        for kind in KINDS:
            starts[kind][f"{optimizer}-{kind}"] = settings
        for before, after in (move.split("-") for move in MOVES):
            starts[before][f"{optimizer}-{before}-half"] = settings | half
            source = {"resume": f"out/{optimizer}-{before}-half/step-000006"}
            ends[after][f"{optimizer}-{before}-{after}"] = settings | source
    train(starts)
    train({kind: runs for kind, runs in ends.items() if runs})
    return home / "out"


@pytest.mark.parametrize("optimizer", SETTINGS)
@pytest.mark.parametrize("path", [*KINDS, *MOVES][1:])
def test_a_run_on_several_processes_is_that_of_one_wherever_it_moves(moved, optimizer, path):
    """4 micro-batches in a step: 1 x 4, 2 x 2, 4 x 1, with dropout."""
    for value in ("train_loss", "grad_norm", "val_loss"):
        whole, found = curve(moved / f"{optimizer}-1", value), curve(moved / f"{optimizer}-{path}", value)
        if "-" in path:
            whole = {step: loss for step, loss in whole.items() if step > 6}
        assert found == pytest.approx(whole, abs=1e-6) and len(set(found.values())) == len(whole) > 0


@pytest.mark.parametrize("optimizer", SETTINGS)
@pytest.mark.parametrize("kind", ["2", "fsdp"])
def test_on_the_same_number_of_processes_resuming_is_exact_to_the_bit(moved, optimizer, kind):
    for file in BOTH:
        whole, resumed = (moved / f"{optimizer}-{path}/last/{file}" for path in (kind, f"{kind}-{kind}"))
        assert whole.read_bytes() == resumed.read_bytes()


def test_one_format_whatever_the_processes(moved):
    shapes = []
    for kind in KINDS:
        tensors = [checkpoint.read_tensors(moved / f"adamw-{kind}/last/{file}") for file in BOTH]
        shapes.append({key: (value.shape, value.dtype) for part in tensors for key, value in part.items()})
    assert all(shape == shapes[0] for shape in shapes)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_minimal_recipe_has_the_losses_of_the_loop(train, home, optimizer):
    settings = {"max_iters": 10, "optimizer": optimizer, "sample_tokens": 0, "model": {"dropout": 0.0}}
    minimal = {"minimal": True, **settings}
    train({"1": {f"whole-{optimizer}": settings, f"minimal-{optimizer}-1": minimal}})
    train({"2": {f"minimal-{optimizer}-2": minimal}})
    expected = curve(home / "out" / f"whole-{optimizer}", "train_loss")
    for kind in "12":
        losses = json.loads((home / "out" / f"minimal-{optimizer}-{kind}").read_text())
        assert losses == pytest.approx(list(expected.values()), abs=1e-6) and len(set(losses)) == 10


def test_several_processes_measure_what_one_does(compare, home):
    """The mean of their losses, the sum of their shares of an evaluation, and the divisor of micro-batches that were
    halved because one of them lacked the memory."""
    quick = {"max_iters": 4, "eval_interval": 2, "eval_iters": 3}  # batches that do not divide
    compare({"quick": quick}, kinds=("1", "2", "fsdp"))
    compare({"halved": {"max_iters": 4, "room": 2}})
    for name in ("quick-2", "quick-fsdp", "halved-2"):
        assert curve(home / "out" / name, "tokens")[4] == 4 * 4 * 4 * 16  # steps, micro-batches, sequences, tokens
    assert checkpoint.load_configs(home / "out" / "halved-2")[1].gradient_accumulation_steps == 8


def test_two_processes_evaluate_a_finished_run(train, zygote, home):
    """docs/watching.md: how several GPUs evaluate a large model."""
    train({"1": {"finished": {"max_iters": 2}}})
    runs = json.dumps([{"out_dir": "out/finished", "resume": "auto", "max_iters": 0}])
    first, second = [program.wait() for program in zygote.ranks(2, RUNS, runs, cwd=home)]
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert f"validation loss {curve(home / 'out' / 'finished')[2]:.4f}" in first.stdout


def test_sharded_processes_that_lack_memory_halve_together(train, home):
    train({"fsdp": {"together": {"everywhere": True, "max_iters": 2, "sample_tokens": 0, "room": 2}}})
    assert checkpoint.load_configs(home / "out" / "together")[1].batch_size == 2


def test_sharded_processes_that_lack_memory_in_the_backward_pass_train_all_layers_afterwards(compare):
    """FSDP keeps the state of an interrupted pass."""
    compare({"late": {"everywhere": True, "late": True, "room": 2, "max_iters": 4}}, kinds=("1", "fsdp"))


def test_two_processes_read_a_mixture_as_one_does(compare, home, text):
    write_data(home / "back", text[::-1])
    steps = {"max_iters": 4, "eval_interval": 2}
    compare({"plain": steps, "mixed": {"data": "data:0.7,back:0.3", **steps}})
    plain, mixed = (curve(home / "out" / f"{name}-1") for name in ("plain", "mixed"))
    assert plain != mixed


@pytest.mark.parametrize("model", [{}, MODERN], ids=["gpt2", "modern"])
def test_sharded_processes_in_bf16_lose_what_copies_and_one_process_do(compare, home, model):
    """No process ever holds more than its shard of a gradient (`check_shards`)."""
    name, length = f"bf16-{len(model)}", {"max_iters": 6, "eval_interval": 6, "sample_tokens": 0}
    compare({name: {"precision": "bf16", "model": model, **length}}, kinds=("1", "2", "fsdp"), abs=2e-3)
    shards, copies = (curve(home / "out" / f"{name}-{kind}", "train_loss") for kind in ("fsdp", "2"))
    assert shards != copies  # they do differ in rounding


@pytest.mark.nightly
def test_compiled_blocks_lose_what_plain_ones_do_alone_copied_and_sharded(compare, home):
    few = {"max_iters": 5, "eval_interval": 5, "sample_tokens": 0, "eval_iters": 2, "model": MODERN | {"dropout": 0.0}}
    threads = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor")}
    runs = {"compiled": {"compile": "true", **few}, "plain": {"compile": "false", **few}}
    compare(runs, kinds=("1", "2", "fsdp"), **threads)
    compiled, plain = (curve(home / "out" / f"{name}-1", "train_loss") for name in runs)
    assert compiled == pytest.approx(plain, abs=1e-3) and compiled != plain


@pytest.mark.parametrize("launches", [1, pytest.param(10, marks=pytest.mark.nightly)])
def test_two_processes_plan_with_equally_many_steps(zygote, home, launches):
    """Steps contain collectives: if each process timed steps by its own clock, one would wait forever."""
    sizes = "--n_layer=4 --n_embd=128 --n_head=4 --block_size=64 --batch_size=16 --gradient_accumulation_steps=2"
    words = f"--dry_run --json --device=cpu --data=data {sizes} --threads=1 --timeout=60".split()
    for _ in range(launches):
        programs = zygote.ranks(2, ROOT / "recipes" / "shakespeare_nanogpt.py", *words, cwd=home)
        first, second = [program.wait() for program in programs]
        assert first.returncode == second.returncode == 0, first.stderr + second.stderr
        assert json.loads(first.stdout.splitlines()[-1])["seconds_per_step"] > 0.015
