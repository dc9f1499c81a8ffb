import dataclasses

import pytest

from nanogpt import GPTConfig, TrainConfig
from nanogpt.config import INCIDENTAL, fail, field_help, parse, user_errors


def flags(*argv, model=None, train=None):
    return parse(model or GPTConfig(), train or TrainConfig(), list(argv), "a recipe")


def test_command_line_overrides_recipe_overrides_defaults():
    model, train = flags("--n_layer=4", "--max_iters", "7", model=GPTConfig(n_layer=2, n_embd=48))
    assert (model.n_layer, model.n_embd, model.n_head) == (4, 48, 12)
    assert (train.max_iters, train.batch_size) == (7, TrainConfig().batch_size)


def test_values_are_read_by_the_type_of_their_field():
    model, train = flags("--bias=True", "--n_kv_head=none", "--dropout=.5", "--compile=False", "--lr_decay_iters=9")
    assert (model.bias, model.n_kv_head, model.dropout) == (True, None, 0.5)
    assert (train.compile, train.lr_decay_iters) == ("false", 9)
    assert flags("--qk_norm")[0].qk_norm is True


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
        (["--frobnicate"], "unknown flag --frobnicate: --help lists them all"),
        (["--n_layer=four"], "--n_layer=four: expected an integer"),
        (["--n_layer=4.5"], "--n_layer=4.5: expected an integer"),
        (["--learning_rate=fast"], "--learning_rate=fast: expected a number"),
        (["--bias=perhaps"], "--bias=perhaps: expected true or false"),
        (["stray"], "unrecognized arguments: stray"),
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
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be above 0"),
        ({"max_iters": -1}, "max_iters=-1 must be at least 0"),
        ({"grad_clip": float("nan")}, "grad_clip=nan must be at least 0"),
        ({"device": "tpu"}, "device='tpu' is not one of auto, cpu, cuda, mps"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


@pytest.mark.parametrize("config", [GPTConfig, TrainConfig])
def test_every_field_has_a_help_text(config):
    assert field_help(config).keys() == {field.name for field in dataclasses.fields(config)}


def test_every_setting_either_changes_what_is_computed_or_is_known_not_to():
    """A new one has to join this list or `INCIDENTAL`, which resuming, comparisons and model cards read."""
    computes = set(
        "data init_from seed batch_size gradient_accumulation_steps max_iters optimizer learning_rate "
        "muon_learning_rate muon_momentum weight_decay beta1 beta2 grad_clip lr_schedule warmup_iters lr_decay_iters "
        "min_lr decay_fraction eval_iters device precision compile deterministic".split()
    )
    assert not computes & INCIDENTAL
    assert computes | INCIDENTAL == {field.name for field in dataclasses.fields(TrainConfig)}


def test_help_shows_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit):
        flags("--help", model=GPTConfig(n_layer=3))
    shown = capsys.readouterr().out
    for config in (GPTConfig, TrainConfig):
        assert all(f"--{field.name} " in shown for field in dataclasses.fields(config))
    assert "number of blocks (default: 3)" in " ".join(shown.split())


def test_only_the_main_process_reports_an_error(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        fail("something")
    assert capsys.readouterr().err == ""


def test_ctrl_c_is_exit_code_130_and_what_there_is_to_say(capsys):
    for said, shown in (("", "\n"), ("stopped: it goes on", "\nstopped: it goes on\n")):
        with pytest.raises(SystemExit) as exit, user_errors(said):
            raise KeyboardInterrupt
        assert exit.value.code == 130
        assert capsys.readouterr().err == shown


def test_false_is_false_and_half_a_flag_is_none(capsys):
    assert parse(GPTConfig(bias=True), TrainConfig(), ["--bias=False"], "")[0].bias is False
    with pytest.raises(SystemExit):
        parse(GPTConfig(), TrainConfig(), ["--max_iter=5"], "")
    assert "unknown flag --max_iter: did you mean --max_iters?" in capsys.readouterr().err
