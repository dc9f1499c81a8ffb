"""Several processes, really launched: they train what one trains, and a run moves freely between them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanogpt import checkpoint
from nanogpt.run import metrics

RUNS = Path(__file__).with_name("runs.py")
MINIMAL = Path(__file__).with_name("minimal_losses.py")
BIN = Path(sys.executable).parent
# the way to start several processes on a CPU (accelerate_configs/README.md)
SEVERAL = "--multi_gpu --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0".split()


def start(home: Path, processes: int, *arguments) -> subprocess.Popen:
    """Starts `arguments` by accelerate launch, without any configuration of this machine's."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "OMP_NUM_THREADS", "MASTER_"))}
    clean |= {"HF_HOME": str(home / "hf"), "ACCELERATE_USE_CPU": "true"}
    several = [*SEVERAL, "--num_processes", processes] if processes > 1 else ["--num_processes", 1]
    command = map(str, [BIN / "accelerate", "launch", *several, *arguments])
    return subprocess.Popen(command, cwd=home, env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def train(home: Path, processes: int, *runs: dict, fsdp: bool = False, code: int = 0) -> tuple[str, str]:
    """Trains `runs` one after the other in one launch; returns what it printed."""
    process = start(home, processes, RUNS, *["--fsdp"] * fsdp, json.dumps(runs))
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == code, err
    return out, err


def curve(home: Path, run: str, name: str) -> dict[int, float]:
    return {line["step"]: line[name] for line in metrics.read(home / "out" / run / "metrics.jsonl") if name in line}


def run(name: str, **settings) -> dict:
    return {"out_dir": f"out/{name}", **settings}


@pytest.fixture(scope="module")
def home(tmp_path_factory, text) -> Path:
    from data_prep import writer

    home = tmp_path_factory.mktemp("home")
    writer.write(home / "data", text, "char", 0.1, "made up")
    return home


@pytest.fixture(scope="module")
def trained(home) -> Path:
    """Runs of 20 steps by one, two, four processes and two sharded ones, whole and stopped halfway and resumed."""
    half = {"max_iters": 10, "eval_interval": 10}

    def moved(name: str, source: str, step: int = 10, **settings) -> dict:
        return run(name, resume=f"out/{source}/step-{step:06d}", **settings)

    muon = {"optimizer": "muon"}
    few = {"max_iters": 2, "eval_interval": 1, "eval_iters": 3}
    train(
        home,
        1,
        run("1"),
        run("1-half", **half),
        run("few", **few),
        run("muon-1", **muon),
        run("muon-1-half", **muon, **half),
    )
    train(home, 4, run("4"))
    ddp = [run("2"), run("2-half", **half), run("2-half", resume="auto"), moved("1-to-2", "1-half")]
    ddp += [run("muon-2", **muon), run("muon-2-half", **muon, **half), moved("muon-1-to-2", "muon-1-half", **muon)]
    train(home, 2, *ddp)
    fsdp = [run("fsdp"), run("fsdp-half", **half), run("fsdp-half", resume="auto")]
    fsdp += [moved("2-to-fsdp", "2-half", max_iters=15, eval_interval=5)]
    fsdp += [run("fsdp-few", **few)]  # batches that do not divide
    fsdp += [run("muon-fsdp", **muon), run("muon-fsdp-half", **muon, **half)]
    fsdp += [moved("muon-1-to-fsdp", "muon-1-half", **muon)]
    train(home, 2, *fsdp, fsdp=True)
    single = [moved("2-to-1", "2-half"), moved("2-to-fsdp-to-1", "2-to-fsdp", 15), moved("fsdp-to-1", "fsdp-half")]
    single += [moved(f"muon-{name}-to-1", f"muon-{name}-half", **muon) for name in ("2", "fsdp")]
    train(home, 1, *single)
    return home


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("name, whole", MOVES)
def test_a_run_that_moved_is_the_run_that_stayed(trained, name, whole):
    for value in ("train_loss", "grad_norm", "val_loss"):
        moved, stayed = curve(trained, name, value), curve(trained, whole, value)
        assert moved and moved == pytest.approx({step: stayed.get(step, moved[step]) for step in moved}, abs=1e-6)
    assert max(curve(trained, name, "train_loss")) == (15 if name == "2-to-fsdp" else 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2", "fsdp"])
def test_on_the_same_number_of_processes_resuming_is_exact_to_the_bit(trained, name):
    for file in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        whole, resumed = (trained / "out" / out / "step-000020" / file for out in (name, f"{name}-half"))
        assert whole.read_bytes() == resumed.read_bytes()
    assert curve(trained, name, "train_loss") == curve(trained, f"{name}-half", "train_loss")
    losses = curve(trained, f"{name}-half", "val_loss")
    assert losses[20] == curve(trained, name, "val_loss")[20]


@pytest.mark.slow
def test_a_quick_evaluation_is_the_same_on_sharded_processes(trained):
    losses = curve(trained, "few", "val_loss")
    assert len(losses) == 3 and losses == pytest.approx(curve(trained, "fsdp-few", "val_loss"), abs=1e-6)


@pytest.mark.slow
def test_one_format_whatever_the_processes(trained):
    shapes = []
    for name in ("1", "2", "4", "fsdp"):
        last = checkpoint.find(trained / "out" / name)
        tensors = checkpoint.read_tensors(last / checkpoint.MODEL) | checkpoint.read_tensors(
            last / checkpoint.OPTIMIZER
        )
        shapes.append({key: (tensor.shape, tensor.dtype) for key, tensor in tensors.items()})
    assert shapes[0] == shapes[1] == shapes[2] == shapes[3]


@pytest.mark.slow
def test_launch_check_tells_what_each_process_is(home):
    process = start(home, 2, "-m", "nanogpt", "launch-check", "--precision", "fp32")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("2 processes by gloo, a copy of the model on each; fp32, torch ")
    assert [line.split(" on ")[0] for line in lines[1:3]] == ["process 0: cpu:0 (cpu)", "process 1: cpu:0 (cpu)"]
    assert lines[3] == "the sequences of a step must be a multiple of 2, to be shared"


@pytest.mark.slow
def test_a_launch_that_became_one_process_stops_with_the_right_command(home):
    flags = "--cpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no".split()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "OMP_NUM_THREADS", "MASTER_"))}
    command = map(str, [BIN / "accelerate", "launch", *flags, RUNS, json.dumps([run("never")])])
    done = subprocess.run(command, cwd=home, env=clean, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert (
        "the launcher was asked for several processes, but started one: for several processes on a CPU" in done.stderr
    )
    assert not (home / "out" / "never").exists()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_minimal_recipe_has_the_same_losses_on_one_process_and_on_two(home, optimizer):
    settings = {"max_iters": 50, "lr_decay_iters": 50, "optimizer": optimizer, "sample_tokens": 0, "eval_interval": 50}
    train(home, 1, run(f"whole-{optimizer}", dropout=0.0, **settings))
    expected = list(curve(home, f"whole-{optimizer}", "train_loss").values())
    for processes in (1, 2):
        process = start(home, processes, MINIMAL, f"{processes}.json", json.dumps(settings))
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        losses = json.loads((home / f"{processes}.json").read_text())
        assert losses == pytest.approx(expected, abs=1e-6) and len(set(losses)) == 50


def pair(home: Path, *settings: dict, fsdp: bool = False, **environment: str) -> str:
    """Trains each run by one process and by two, see pair.py; returns the exit codes: of the two, of the one."""
    command = [sys.executable, RUNS.with_name("pair.py"), *["--fsdp"] * fsdp, json.dumps(settings)]
    env = os.environ | environment
    done = subprocess.run(map(str, command), cwd=home, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_two_processes_measure_what_one_does(home):
    """The mean of their losses, the sum of their shares of an evaluation, and the divisor of micro-batches that were
    halved because one of them lacked the memory."""
    few = {"name": "quick", "max_iters": 4, "eval_interval": 2, "eval_iters": 3}
    assert pair(home, few, {"name": "halved", "max_iters": 4, "room": 2}) == "exit codes 0 0 0"
    for name, evaluations in (("quick", [0, 2, 4]), ("halved", [0, 4])):
        for value in ("train_loss", "grad_norm", "val_loss", "tokens"):
            one, two = curve(home, f"{name}-one", value), curve(home, f"{name}-two", value)
            assert two == pytest.approx(one, abs=1e-6)
        assert list(curve(home, f"{name}-two", "val_loss")) == evaluations
        assert curve(home, f"{name}-two", "tokens")[4] == 4 * 4 * 4 * 16  # steps, micro-batches, sequences, tokens
    assert checkpoint.load_configs(home / "out" / "halved-two")[1].gradient_accumulation_steps == 8


@pytest.mark.slow
def test_two_processes_with_data_at_a_url_lose_what_one_does_with_local_data(home):
    steps = {"max_iters": 4, "eval_interval": 2}
    url = {"name": "url", "data": f"file://{home}/data", **steps}
    assert pair(home, {"name": "path", **steps}, url, HF_HOME=str(home / "hf")) == "exit codes 0 0 0"
    for value in ("train_loss", "val_loss"):
        path = curve(home, "path-one", value)
        assert path and curve(home, "url-one", value) == path
        assert curve(home, "url-two", value) == pytest.approx(path, abs=1e-6)


@pytest.mark.slow
def test_a_signal_to_one_process_ends_an_evaluation_on_both(home):
    assert pair(home, {"name": "ended", "max_iters": 4, "eval_interval": 2, "terminate": 2}) == "exit codes 143 143 143"
    for name in ("ended-two", "ended-one"):
        last = checkpoint.find(home / "out" / name, ("last",))
        assert last.name == "step-000002" and checkpoint.read_state(last)["evaluated_step"] == 0


MODERN = {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "qk_norm": True, "bias": False}


@pytest.mark.slow
def test_two_sharded_processes_in_half_precision_lose_what_two_copies_and_one_process_do(home):
    """50 steps in bf16, both families; and in fp16 (on a CPU others compute that in fp32) an evaluation and two steps.
    No process ever holds more than its shard of a gradient (`check_shards`)."""
    fifty = {"precision": "bf16", "max_iters": 50, "lr_decay_iters": 50, "eval_interval": 50, "sample_tokens": 0}
    runs = {"name": "bf16", **fifty}, {"name": "bf16-modern", "model": MODERN, **fifty}
    assert pair(home, *runs, fsdp=True) == "exit codes 0 0 0 0 0"
    assert pair(home, {"name": "fp16", "precision": "fp16", "max_iters": 2}, fsdp=True) == "exit codes 0 0 0 0 0"
    for name, steps, most in (("bf16", 50, 2e-3), ("bf16-modern", 50, 2e-3), ("fp16", 2, 2e-2)):
        for value in ("train_loss", "val_loss"):
            shards = curve(home, f"{name}-fsdp", value)
            assert max(shards) == steps
            for other in ("two", "one"):
                assert shards == pytest.approx(curve(home, f"{name}-{other}", value), abs=most), (name, other)
    assert curve(home, "bf16-fsdp", "train_loss") != curve(home, "bf16-two", "train_loss")  # they do differ in rounding


@pytest.mark.slow
def test_compiled_blocks_lose_what_plain_ones_do_alone_copied_and_sharded(home):
    few = {"max_iters": 5, "eval_interval": 5, "sample_tokens": 0, "eval_iters": 2, "model": MODERN | {"dropout": 0.0}}
    compiled, plain = {"name": "compiled", "compile": "true", **few}, {"name": "plain", "compile": "false", **few}
    threads = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor")}
    assert pair(home, compiled, plain, fsdp=True, **threads) == "exit codes 0 0 0 0 0"
    for processes in ("one", "two", "fsdp"):
        for value in ("train_loss", "val_loss"):
            expected = curve(home, f"plain-{processes}", value)
            assert curve(home, f"compiled-{processes}", value) == pytest.approx(expected, abs=1e-3) and expected
    assert curve(home, "compiled-one", "train_loss") != curve(home, "plain-one", "train_loss")  # it was compiled


@pytest.mark.slow
def test_what_the_main_process_finds_wrong_alone_ends_all_at_once(home):
    """transformers has no class for RMSNorm with learned positions, which the main process alone looks up."""
    start = time.monotonic()
    odd = {"name": "odd", "exportable": True, "model": {"norm": "rmsnorm"}}
    assert pair(home, odd) == "exit codes 2 2 2"
    assert time.monotonic() - start < 60  # the timeout of a collective operation is 600 s
