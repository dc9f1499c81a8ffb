import dataclasses
import json
import subprocess
import sys

import pytest

from nanogpt import GPTConfig, TrainConfig
from nanogpt.run.errors import fail, user_errors
from nanogpt.run.flags import Actions, asked_device, field_help, parse


def flags(*argv, model=None, train=None):
    return parse(model or GPTConfig(), train or TrainConfig(), list(argv))[:2]


def test_command_line_overrides_recipe_overrides_defaults():
    model, train = flags("--n_layer=4", "--max_iters", "7", model=GPTConfig(n_layer=2, n_embd=48))
    assert (model.n_layer, model.n_embd, model.n_head) == (4, 48, 12)
    assert (train.max_iters, train.batch_size) == (7, TrainConfig().batch_size)


def test_home_directories_are_found_and_a_slash_at_the_end_is_not_part_of_a_name(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    train = flags("--out_dir=~/runs/x/", "--data=~/text:0.5,~/b:0.5", "--init_from=~/base", "--resume=~/runs/x/best")[1]
    home = "/home/someone"
    assert (train.out_dir, train.data) == (f"{home}/runs/x", f"{home}/text:0.5,{home}/b:0.5")
    assert (train.init_from, train.resume) == (f"{home}/base", f"{home}/runs/x/best")
    assert flags("--data=hf://datasets/a/b/")[1].data == "hf://datasets/a/b/"


def test_values_are_read_by_the_type_of_their_field():
    model, train = flags("--bias=True", "--n_kv_head=none", "--dropout=.5", "--compile=False", "--lr_decay_iters=9")
    assert (model.bias, model.n_kv_head, model.dropout) == (True, None, 0.5)
    assert (train.compile, train.lr_decay_iters) == ("false", 9)
    assert flags("--qk_norm")[0].qk_norm is True and flags("--bias=false", model=GPTConfig(bias=True))[0].bias is False


def test_nanogpts_command_line_works_as_it_stands():
    model, train = flags(
        *"--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 "
        "--n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0".split()
    )
    assert (model.block_size, model.n_layer, model.n_head, model.n_embd, model.dropout) == (64, 4, 4, 128, 0.0)
    assert (train.device, train.eval_iters, train.max_iters, train.lr_decay_iters) == ("cpu", 20, 2000, 2000)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--n_leyer=3"], "unknown flag --n_leyer: did you mean --n_layer?"),
        (["--xyzzy"], "unknown flag --xyzzy: --help lists them all"),
        (["--n_layer=four"], "--n_layer=four: expected an integer"),
        (["--n_layer=4.5"], "--n_layer=4.5: expected an integer"),
        (["--learning_rate=fast"], "--learning_rate=fast: expected a number"),
        (["--bias=perhaps"], "--bias=perhaps: expected true or false"),
        (["stray"], "unrecognized arguments: stray"),
        (["--lr=1e-3"], "did you mean --learning_rate?"),  # nanoGPT's names, from here on
        (["--dtype=bfloat16"], "did you mean --precision?"),
        (["--eval_only=True"], "did you mean --max_iters=0?"),
        (["--decay_lr=False"], "did you mean --lr_schedule=constant --warmup_iters=0?"),
        (["--wandb_log=True"], "did you mean --report_to=wandb?"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(argv, message, capsys):
    with pytest.raises(SystemExit) as exit:
        flags(*argv)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"optimizer": "sgd"}, "optimizer='sgd' is not one of adamw, muon"),
        ({"batch_size": 0}, "batch_size=0 must be from 1 to 65536"),
        ({"grad_clip": float("nan")}, "grad_clip=nan must be from 0 to 1000000000.0"),
        ({"learning_rate": float("inf")}, "learning_rate=inf must be from 1e-12 to 100"),
        ({"lr_decay_iters": -5}, "lr_decay_iters=-5 must be from 1"),
        ({"init_from": ""}, "init_from='' is not a name"),
        ({"init_from": "resume"}, "init_from=resume: .*--resume=auto"),
        ({"learning_rate": 1e-5}, "min_lr=0.0001 is above learning_rate=1e-05"),
        ({"max_iters": "5"}, "max_iters='5' must be int"),
        ({"max_iters": None}, "max_iters=None must be int"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


def test_a_subclass_adds_a_setting():
    @dataclasses.dataclass
    class Mine(TrainConfig):
        label_smoothing: float = 0.0  # share of the target's probability that all tokens get

    assert field_help(Mine)["label_smoothing"] == "share of the target's probability that all tokens get"
    assert field_help(Mine)["out_dir"] == field_help(TrainConfig)["out_dir"]
    train = flags("--label_smoothing=0.1", "--max_iters=3", train=Mine())[1]
    assert (type(train), train.label_smoothing, train.max_iters) == (Mine, 0.1, 3)


def test_flags_are_written_with_hyphens_too():
    model, train = flags("--n-layer=4", "--max-iters", "7", "--data=out-of-reach")
    assert (model.n_layer, train.max_iters, train.data) == (4, 7, "out-of-reach")


def test_an_error_is_one_line_without_escape_sequences(capsys):
    for message in ("\x1b]0;owned\x07 and\na second line", FileNotFoundError(2, "No such file", "\x1b[2J")):
        with pytest.raises(SystemExit):
            fail(message)
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "\x1b" not in error and "\\x1b" in error


def test_too_little_memory_is_a_line(capsys):
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(SystemExit) as exit, user_errors():
            raise error
        assert exit.value.code == 2 and capsys.readouterr().err.startswith("error: out of memory")
    with pytest.raises(RuntimeError, match="another"), user_errors():
        raise RuntimeError("another")


def test_a_reader_that_leaves_ends_the_program_quietly():
    program = "from nanogpt.run.errors import user_errors\nwith user_errors():\n    for i in range(10**6): print(i)"
    command = f"{sys.executable} -c '{program}' | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n141\n", "")


@pytest.mark.parametrize("config", [GPTConfig, TrainConfig, Actions])
def test_every_field_has_a_help_text(config):
    assert all(field_help(config).values()), field_help(config)


def test_help_shows_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit):
        flags("--help", model=GPTConfig(n_layer=3))
    shown = capsys.readouterr().out
    for config in (GPTConfig, TrainConfig, Actions):
        assert all(f"--{field.name} " in shown for field in dataclasses.fields(config))
    assert "number of blocks (default: 3)" in " ".join(shown.split())


def test_a_device_without_a_value_is_one_line_in_recipes_that_choose_by_it(refused, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--device"])
    assert "expected one argument" in refused(asked_device)


def test_ctrl_c_is_exit_code_130_and_what_there_is_to_say(capsys):
    for said, shown in (("", "\n"), ("stopped: it goes on", "\nstopped: it goes on\n")):
        with pytest.raises(SystemExit) as exit, user_errors(said):
            raise KeyboardInterrupt
        assert exit.value.code == 130
        assert capsys.readouterr().err == shown


def test_config_repeats_the_settings_of_a_run_below_the_flags_and_above_the_recipe(tmp_path):
    """But for where it writes and what it publishes."""
    recorded = {"n_layer": 3, "vocab_size": 65}, {"max_iters": 7, "beta1": 0.5, "out_dir": "out/old", "resume": "auto"}
    recorded[1].update(push_to_hub="someone/model", report_to="wandb", time_limit=3)
    config = {"model": recorded[0], "train": recorded[1] | {"of_another_version": 1}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "config.json"):
        model, train = flags(
            f"--config={path}", "--beta1=0.6", model=GPTConfig(n_layer=1, n_head=4, n_embd=8, train_temperature=0.9)
        )
        assert (model.n_layer, model.n_head, model.vocab_size, model.train_temperature) == (3, 4, 65, 1)
        assert (train.max_iters, train.beta1, train.out_dir, train.resume) == (7, 0.6, "out/run", "none")
        assert (train.push_to_hub, train.report_to, train.time_limit) == (None, "none", 0)


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("{", "config.json"),
        ('{"model": 1, "train": {}}', "config.json"),
        ('{"model": {"n_layer": 0}, "train": {}}', "n_layer=0 must be from 1"),
        ('{"model": {}, "train": {"data": 5}}', "data=5 must be str"),
        ('{"model": {"n_layer": true}, "train": {}}', "n_layer=True must be int"),
    ],
)
def test_a_config_that_is_none_is_one_line(tmp_path, content, complaint, refused):
    (tmp_path / "config.json").write_text(content)

    def read():
        with user_errors():
            flags(f"--config={tmp_path}")

    assert complaint in refused(read)


def test_those_who_change_the_code_can_ask_for_the_traceback(monkeypatch):
    monkeypatch.setenv("NANOGPT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="of my own"), user_errors():
        raise ValueError("of my own")


def test_a_package_that_is_missing_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit, user_errors():
        import no_such_package  # noqa: F401
    assert exit.value.code == 2
    assert capsys.readouterr().err == ("error: there is no module no_such_package\n")
