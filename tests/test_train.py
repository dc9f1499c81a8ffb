"""The loop, in this process: what a step computes must depend on the settings and the step alone."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
from types import SimpleNamespace

import conversations
import pytest
import torch
from conftest import TINY
from tiny_run import Run

from data_prep.chat import prepare as prepare_chat
from nanogpt import GPTConfig, TrainConfig, checkpoint, train
from nanogpt.hub import export
from nanogpt.hub.load import load_checkpoint
from nanogpt.run import main, metrics

DROPOUT = dataclasses.replace(TINY, dropout=0.2)


def weights(run: Run) -> list[torch.Tensor]:
    return [p.detach().clone() for p in run.gpt.parameters()]


def curve(run: Run, name: str = "train_loss") -> dict[int, float]:
    return {line["step"]: line[name] for line in metrics.read(run.out_dir / "metrics.jsonl") if name in line}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stopped_and_resumed_equals_never_stopped_to_the_bit(make_run, tmp_path, optimizer):
    settings = {"optimizer": optimizer, "log_interval": 1, "lr_decay_iters": 6, "eval_interval": 3}
    settings |= {"short_block_iters": 4, "short_block_size": 8}
    whole = make_run(DROPOUT, max_iters=6, out_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    make_run(DROPOUT, max_iters=3, **settings).train()
    resumed = make_run(DROPOUT, max_iters=6, resume="auto", **settings)
    assert resumed.state.step == 3
    resumed.train()
    for name in ("train_loss", "val_loss"):
        assert curve(whole, name) == curve(resumed, name)
    assert resumed.state.tokens == whole.state.tokens == 6 * 4 * 16
    for file in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        a, b = (run.out_dir / "step-000006" / file for run in (whole, resumed))
        assert a.read_bytes() == b.read_bytes()


def test_the_same_step_whatever_the_split_into_micro_batches(make_run, tmp_path):
    curves = []
    for batch, accumulation in ((8, 1), (4, 2), (1, 8)):
        settings = {"batch_size": batch, "gradient_accumulation_steps": accumulation, "log_interval": 1}
        run = make_run(out_dir=str(tmp_path / f"out-{batch}"), **settings)
        run.train()
        curves.append(curve(run))
    for other in curves[1:]:
        assert other == pytest.approx(curves[0], abs=1e-6)


def test_the_first_steps_read_the_same_windows_in_pieces(make_run, tmp_path):
    run = make_run(short_block_iters=2, short_block_size=4, log_interval=1)
    x, y = run.train_data.batch(run.config.seed, 4, 4)  # of step 1
    run.state.step = 1
    short_x, short_y = run.micro_batch(0)
    assert torch.equal(short_x, x.view(16, 4)) and torch.equal(short_y, y.view(16, 4))
    run.state.step = 2
    assert run.micro_batch(0)[0].shape == (4, 16)
    run.state.step = 0
    shapes = []
    run.gpt.register_forward_pre_hook(lambda model, inputs: shapes.append(tuple(inputs[0].shape)))
    run.rehearse()  # tries what later steps read, too: it has to fit into memory
    assert shapes == [(16, 4), (4, 16)]
    with pytest.raises(ValueError, match="short_block_size=7 does not divide block_size=16"):
        make_run(short_block_iters=1, short_block_size=7, out_dir=str(tmp_path / "other"))


def test_a_run_on_disk(make_run, monkeypatch, capsys):
    monkeypatch.setattr("nanogpt.run.console.SAMPLE_TOKENS", 300)
    run = make_run(max_iters=6, eval_interval=2, log_interval=2, keep_checkpoints=1)
    run.train()
    config = json.loads((run.out_dir / "config.json").read_text())
    assert config["model"]["n_layer"] == 2 and config["train"]["max_iters"] == 6
    assert config["environment"]["torch"] == torch.__version__
    lines = metrics.read(run.out_dir / "metrics.jsonl")
    assert [line["step"] for line in lines if "train_loss" in line] == [2, 4, 6]
    expected = "step tokens train_seconds train_loss lr grad_norm memory tokens_per_second skipped_steps"
    assert lines[1].keys() == set(expected.split())
    best = min((line for line in lines if "val_loss" in line and line["step"]), key=lambda line: line["val_loss"])
    assert (run.out_dir / "best").resolve().name == f"step-{best['step']:06d}"
    assert (run.out_dir / "last").resolve().name == "step-000006"
    shown = capsys.readouterr().out
    assert "nanogpt sample" in shown and "best validation loss" in shown
    sample = shown.split("best validation loss")[1].split("\n", 1)[1].split("next:")[0]
    assert len(sample) > 290  # characters of 300, in lines


def test_a_loss_that_is_not_finite_never_reaches_the_weights(make_run):
    run = make_run(max_iters=3, log_interval=1)
    batch = run.micro_batch
    before = {}

    def poisoned(index):
        if run.state.step == 1:
            before["weights"] = weights(run)
            run.gpt.wte.weight.register_hook(lambda grad: grad * float("nan"))
        if run.state.step == 2:
            assert all(torch.equal(a, b) for a, b in zip(weights(run), before["weights"], strict=True))
        return batch(index)

    run.micro_batch = poisoned
    run.train()
    assert run.state.skipped_steps == 2
    assert [line["skipped_steps"] for line in metrics.read(run.out_dir / "metrics.jsonl") if "lr" in line] == [0, 1, 2]


def scale_gradients(run: Run, scale: float) -> None:
    """What Accelerate does in fp16, which it leaves out on a CPU."""
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    run.accelerator.state._mixed_precision, run.accelerator.native_amp = "fp16", True


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_gradient_scaler_changes_nothing_but_the_steps_that_overflow(make_run, tmp_path, optimizer):
    """What fp16 brings, here in fp32: scaling by powers of two and back is exact."""
    plain = make_run(optimizer=optimizer, out_dir=str(tmp_path / "plain"))
    plain.train()
    scaled = make_run(optimizer=optimizer, out_dir=str(tmp_path / "scaled"))
    scale_gradients(scaled, 2.0**16)
    scaled.train()
    for a, b in zip(weights(plain), weights(scaled), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)

    overflowing = make_run(optimizer=optimizer, out_dir=str(tmp_path / "overflowing"), max_iters=3)
    scale_gradients(overflowing, 2.0**127)
    overflowing.gpt.wte.weight.register_hook(lambda grad: grad * 1e9)
    before = weights(overflowing)
    overflowing.train()
    assert overflowing.state.skipped_steps == 3
    assert overflowing.accelerator.scaler.get_scale() == 2.0**124  # halved once for each step
    assert all(torch.equal(a, b) for a, b in zip(before, weights(overflowing), strict=True))


def test_a_diverged_model_is_not_the_best_and_costs_no_checkpoint(make_run, monkeypatch):
    losses = iter([4.0, 3.0, math.nan, math.inf, math.nan])
    monkeypatch.setattr(train, "validate", lambda *args: {"val_loss": next(losses), "val_bpb": 0.0})
    run = make_run(max_iters=4, eval_interval=1, keep_checkpoints=1)
    run.train()
    assert (run.state.best_val_loss, run.state.best_step) == (3.0, 1)
    assert [path.name for path in checkpoint.list_checkpoints(run.out_dir)] == ["step-000001", "step-000004"]
    assert checkpoint.find(run.out_dir).name == "step-000001"
    make_run(max_iters=5, resume="auto")  # which writes the lines again
    lines = run.out_dir / "metrics.jsonl"
    assert "NaN" not in lines.read_text() and "Infinity" not in lines.read_text()  # which are not JSON
    kept = [line["val_loss"] for line in metrics.read(lines) if "val_loss" in line]
    assert kept == pytest.approx([4.0, 3.0, math.nan, math.nan, math.nan], nan_ok=True)


def test_too_many_bad_steps_in_a_row_end_the_run_with_a_diagnosis(make_run, capsys):
    run = make_run(max_iters=9, log_interval=1, eval_interval=4)
    run.gpt.wte.weight.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(SystemExit) as exit:
        run.train()
    assert (exit.value.code, run.state.step) == (1, 5)
    expected = "error: no finite gradient in the last 5 steps up to step 5, at learning rate"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(make_run, capsys, number, code):
    before = signal.getsignal(number)  # the default, or ignored where the tests run in the background of a shell
    run = make_run(max_iters=50, eval_interval=50)
    batch = run.micro_batch

    def interrupted(index):
        if run.state.step == 2:
            os.kill(os.getpid(), number)
        return batch(index)

    run.micro_batch = interrupted
    with pytest.raises(SystemExit) as exit:
        run.train()
    assert exit.value.code == code
    assert checkpoint.find(run.out_dir, "last").name == "step-000003"
    assert "--resume=auto" in capsys.readouterr().out
    assert signal.getsignal(number) is before
    again = make_run(max_iters=50, eval_interval=50, resume="auto")
    assert again.state.step == 3


def test_a_step_on_conversations_is_the_same_however_it_is_divided(make_run, tmp_path):
    talks = [conversations.talk(f"{i}?", "yes" * (1 + i % 9)) for i in range(60)]
    prepare_chat([conversations.write(tmp_path / "talks.jsonl", talks)], tmp_path / "data", block_size=64)
    model, curves = GPTConfig(block_size=64, n_layer=1, n_head=2, n_embd=16), []
    for size, n in ((8, 1), (2, 4)):  # micro-batches with different numbers of targets
        settings = {"batch_size": size, "gradient_accumulation_steps": n, "log_interval": 1, "learning_rate": 0.1}
        run = make_run(model, data=str(tmp_path / "data"), out_dir=str(tmp_path / f"out-{n}"), **settings)
        run.train()
        curves.append(curve(run))
    assert curves[0] == pytest.approx(curves[1], abs=1e-6)


def test_a_signal_during_the_last_save_ends_a_complete_run(make_run, capsys):
    run = make_run(max_iters=2, eval_interval=2)
    save = run.save

    def interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        save()

    run.save = interrupted
    with pytest.raises(SystemExit) as exit:  # further seeds, for example, are not started
        run.train()
    assert exit.value.code == 143 and "stopped: the run is complete" in capsys.readouterr().out
    assert json.loads((run.out_dir / "result.json").read_text())["reason"] == "finished"


def test_a_step_whose_evaluation_fails_is_saved_without_it(make_run, monkeypatch):
    run = make_run(max_iters=6, eval_interval=2)
    whole = train.evaluate

    def fails(*args, **options):
        if run.state.step == 4:
            raise RuntimeError("the validation data are gone")
        return whole(*args, **options)

    monkeypatch.setattr(train, "evaluate", fails)
    with pytest.raises(RuntimeError, match="data are gone"):
        run.train()
    last = checkpoint.find(run.out_dir, "last")
    saved = checkpoint.read_state(last)
    assert (last.name, saved.evaluated_step, saved.best_step) == ("step-000004", 2, 2)


def test_saves_that_keep_failing_end_the_run(make_run, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    run = make_run(max_iters=50, eval_interval=2)
    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(SystemExit) as exit:
        run.train()
    assert (exit.value.code, run.state.step) == (1, 7)
    assert "error: step 6 could not be saved: [Errno 28] No space left" in capsys.readouterr().err
    run = make_run(max_iters=2)
    with pytest.raises(SystemExit, match="1"):  # its end could not be saved
        run.train()


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limits on the size of files here")
def test_a_write_that_the_system_refuses_loses_nothing(make_run, capsys):
    """The kernel's own refusal, in whatever library writes: files may not grow beyond 2 KB."""
    import resource

    run = make_run(max_iters=6, eval_interval=2, keep_checkpoints=0)
    step = run.step

    def limited():
        step()
        most = 2048 if run.state.step in (3, 4) else -1
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, -1))

    run.step = limited
    run.train()
    assert [path.name for path in checkpoint.list_checkpoints(run.out_dir)] == ["step-000002", "step-000006"]
    assert "warning: step 4 could not be saved: model.safetensors: " in capsys.readouterr().out
    assert all(checkpoint.find_damage(step) is None for step in checkpoint.list_checkpoints(run.out_dir))


def test_a_line_of_metrics_has_the_mean_loss_of_its_steps(make_run, tmp_path):
    found = {}
    for every in (1, 2):
        run = make_run(log_interval=every, out_dir=str(tmp_path / f"{every}"))
        run.train()
        found[every] = curve(run)
    each = found[1]
    assert found[2] == pytest.approx({2: (each[1] + each[2]) / 2, 4: (each[3] + each[4]) / 2})


def test_evaluations_and_saves_do_not_count_as_training(make_run, monkeypatch):
    run, clock = make_run(eval_interval=2), SimpleNamespace(now=0.0)

    def taking(seconds, function):
        def slow(*args, **options):
            clock.now += seconds
            return function(*args, **options)

        return slow

    monkeypatch.setattr(train, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(train, "evaluate", taking(1000, train.evaluate))
    run.step, run.save = taking(1, run.step), taking(100, run.save)
    run.train()
    assert run.state.train_seconds == 4


def test_a_checkpoint_counts_the_steps_skipped_since_the_last_line(make_run):
    run = make_run(eval_interval=2, log_interval=4)
    run.gpt.wte.weight.register_hook(lambda grad: grad * math.nan)
    run.train()
    assert checkpoint.read_state(run.out_dir / "step-000002").skipped_steps == 2


def test_deterministic_runs_are_equal_to_the_bit(make_run, tmp_path):
    ends = []
    try:
        for name in "ab":
            run = make_run(DROPOUT, deterministic=True, out_dir=str(tmp_path / name))
            assert torch.are_deterministic_algorithms_enabled()
            run.train()
            ends.append((weights(run), curve(run)))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(ends[0][0], ends[1][0], strict=True))
    assert ends[0][1] == ends[1][1]


def test_best_is_the_lowest_loss_ever_also_after_a_resume(make_run, monkeypatch):
    losses = iter([4.0, 3.0, 2.0, 2.5, 2.6, 2.2, 2.1, 1.9])
    monkeypatch.setattr(train, "evaluate", lambda *args, **kwargs: {"val_loss": next(losses), "val_bpb": 0.0})
    settings = {"eval_interval": 1, "always_save_checkpoint": True, "keep_checkpoints": 1, "lr_decay_iters": 9}
    run = make_run(max_iters=3, **settings)
    run.train()
    assert (run.out_dir / "best").resolve().name == "step-000002"
    run = make_run(max_iters=6, resume="auto", **settings)
    run.train()
    assert (run.out_dir / "best").resolve().name == "step-000002"
    assert run.state.best_val_loss == 2.0
    assert [path.name for path in checkpoint.list_checkpoints(run.out_dir)] == ["step-000002", "step-000006"]
    run = make_run(max_iters=7, resume="auto", **settings)
    run.train()
    assert (run.out_dir / "best").resolve().name == "step-000007"


@pytest.mark.parametrize("best_is_left", [True, False])
def test_a_run_that_goes_back_has_the_best_of_its_state_or_the_next(make_run, monkeypatch, best_is_left):
    losses = iter([4.0, 2.0, 3.0, 1.0, 2.5])
    monkeypatch.setattr(train, "evaluate", lambda *args, **kwargs: {"val_loss": next(losses), "val_bpb": 0.0})
    run = make_run(max_iters=3, eval_interval=1, keep_checkpoints=0)
    run.train()
    assert (run.out_dir / "best").resolve().name == "step-000003"
    if not best_is_left:
        shutil.rmtree(run.out_dir / "step-000001")
    run = make_run(max_iters=3, eval_interval=1, keep_checkpoints=0, resume=str(run.out_dir / "step-000002"))
    run.train()
    assert (run.state.best_val_loss, run.state.best_step) == ((2.0, 1) if best_is_left else (2.5, 3))
    assert (run.out_dir / "best").resolve().name == f"step-{run.state.best_step:06d}"


def test_a_copy_that_followed_the_links_keeps_its_best(make_run, tmp_path):
    run = make_run()
    run.train()
    best = run.state.best_val_loss
    shutil.copytree(run.out_dir, tmp_path / "copy")
    assert make_run(out_dir=str(tmp_path / "copy"), resume="auto", max_iters=6).state.best_val_loss == best
    assert checkpoint.find(tmp_path / "copy", "last").name == "step-000004"


def test_max_iters_0_evaluates_only(make_run, capsys):
    run = make_run(max_iters=0)
    run.train()
    assert list(curve(run, "val_loss")) == [0]
    assert not checkpoint.list_checkpoints(run.out_dir)


def test_the_last_evaluation_is_over_the_whole_split_and_the_others_are_estimates(make_run, monkeypatch):
    asked = []

    def evaluation(*args, eval_iters, **options):
        asked.append(eval_iters)
        return {"val_loss": 1.0, "val_bpb": 1.0}

    monkeypatch.setattr(train, "evaluate", evaluation)
    make_run(max_iters=4, eval_interval=2, eval_iters=7).train()
    assert asked == [7, 7, 0]


def test_only_the_best_is_saved_where_that_is_asked_for(make_run, monkeypatch):
    losses = iter([4.0, 3.0, 3.5, 2.0, 2.5, 2.6, 2.7])
    monkeypatch.setattr(train, "evaluate", lambda *args, **kwargs: {"val_loss": next(losses), "val_bpb": 0.0})
    settings = {"always_save_checkpoint": False, "keep_checkpoints": 0, "learning_rate": 1e-9, "min_lr": 0}
    run = make_run(max_iters=6, eval_interval=1, **settings)
    run.train()
    assert [p.name for p in checkpoint.list_checkpoints(run.out_dir)] == ["step-000001", "step-000003", "step-000006"]
    assert (run.out_dir / "best").resolve().name == "step-000003"
    assert run.state.best_val_loss == 2.0


def test_bf16_trains_and_checkpoints_stay_fp32(make_run):
    run = make_run(precision="bf16", max_iters=20, eval_interval=20)
    run.train()
    losses = curve(run, "val_loss")
    assert losses[20] < losses[0]
    model = load_checkpoint(checkpoint.find(run.out_dir))
    assert model.wte.weight.dtype == torch.float32
    assert model.generate(torch.zeros(1, 1, dtype=torch.long), 3).shape == (1, 4)


def test_a_run_can_start_from_a_model_of_transformers(make_run, data, tmp_path):
    first = make_run(max_iters=4)
    first.train()
    export.export(first.out_dir, tmp_path / "export")
    config = dataclasses.replace(TINY, block_size=8, dropout=0.1, n_layer=5)  # of these, n_layer is the checkpoint's
    run = make_run(config, init_from=str(tmp_path / "export"), out_dir=str(tmp_path / "tuned"), max_iters=2)
    assert (run.gpt.config.block_size, run.gpt.config.dropout, run.gpt.config.n_layer) == (8, 0.1, 2)
    assert torch.equal(run.gpt.h[1].mlp.c_fc.weight, first.gpt.h[1].mlp.c_fc.weight)
    assert torch.equal(run.gpt.wpe.weight, first.gpt.wpe.weight[:8])
    run.train()
    assert not torch.equal(run.gpt.h[1].mlp.c_fc.weight, first.gpt.h[1].mlp.c_fc.weight)

    shutil.rmtree(tmp_path / "export")  # resuming needs nothing but the run itself
    again = make_run(config, init_from=str(tmp_path / "export"), out_dir=str(run.out_dir), resume="auto", max_iters=3)
    assert torch.equal(again.gpt.h[1].mlp.c_fc.weight, run.gpt.h[1].mlp.c_fc.weight)
    again.train()
    assert again.state.step == 3


@pytest.mark.parametrize(
    "flag, complaint",
    [
        ("--n_layer=3", "n_layer=3, but .*out.*has n_layer=2: leave --n_layer out"),  # the recipe's own value
        ("--bias", "bias=True, but .* has bias=False"),
        ("--block_size=32", "block_size=32, but .* has block_size=16"),
    ],
)
def test_a_flag_that_contradicts_the_model_to_fine_tune_is_one_line(data, tmp_path, make_run, refused, flag, complaint):
    make_run(max_iters=1, eval_interval=1).train()
    recipe = GPTConfig(block_size=16, n_layer=3, n_head=2, n_embd=32, position="rope", n_inner=64)
    config = TrainConfig(str(tmp_path / "tuned"), str(data), device="cpu", precision="fp32")
    assert re.search(
        complaint, refused(lambda: train.main(recipe, config, argv=[f"--init_from={tmp_path / 'out'}", flag]))
    )
    assert not (tmp_path / "tuned" / "config.json").exists()


@pytest.mark.parametrize("always", [True, False])
def test_fine_tuning_that_gets_worse_keeps_the_model_it_began_with(make_run, tmp_path, always):
    first = make_run(max_iters=40, eval_interval=20, learning_rate=1e-2)
    first.train()
    worse = {"init_from": str(first.out_dir), "out_dir": str(tmp_path / "tuned"), "learning_rate": 10.0}
    make_run(max_iters=6, eval_interval=2, always_save_checkpoint=always, keep_checkpoints=1, **worse).train()
    best = checkpoint.find(tmp_path / "tuned")
    assert best.name == "step-000000"
    assert torch.equal(load_checkpoint(best).wte.weight, load_checkpoint(first.out_dir / "best").wte.weight)
    export.export(tmp_path / "tuned", tmp_path / "export")


def test_fine_tuning_on_another_tokenizers_tokens_is_refused(make_run, data, tmp_path):
    make_run(max_iters=1, eval_interval=1).train()
    meta = json.loads((data / "tokenizer.json").read_text())
    vocab = meta["model"]["vocab"]
    meta["model"]["vocab"] = {character: len(vocab) - 1 - i for character, i in vocab.items()}
    (data / "tokenizer.json").write_text(json.dumps(meta))
    recorded = json.loads((data / "meta.json").read_text())
    del recorded["tokenizer_sha256"]  # as if the data had been prepared with it
    (data / "meta.json").write_text(json.dumps(recorded))
    with pytest.raises(ValueError, match=r"which is not the tokenizer of .*/out: prepare"):
        make_run(init_from=str(tmp_path / "out"), out_dir=str(tmp_path / "tuned"))


def test_a_model_that_no_class_can_hold_is_a_warning_or_with_exportable_an_error(make_run, tmp_path, capsys):
    odd = dataclasses.replace(TINY, norm="rmsnorm")
    make_run(odd)
    assert "transformers has no class for norm='rmsnorm', position='learned'" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no class for norm='rmsnorm', position='learned'"):
        make_run(odd, require_exportable=True)
    make_run(dataclasses.replace(TINY, bias=True), require_exportable=True)


def test_a_run_by_the_time_decays_within_its_minutes_and_resumes_to_the_bit(make_run, tmp_path, monkeypatch):
    def a_second(config, parts, state):
        state.train_seconds += 1.0

    monkeypatch.setattr(train, "stop_clock", a_second)
    monkeypatch.setattr(main, "stop_clock", a_second)
    settings = {"train_minutes": 6 / 60, "log_interval": 2, "eval_interval": 4, "lr_schedule": "linear", "min_lr": 0.0}
    settings |= {"warmup_iters": 0, "max_iters": 4, "sample_tokens": 0}  # max_iters does not count
    whole = make_run(DROPOUT, out_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    # a second before step 0, one for each line of metrics, one before the evaluation of step 4: at step 8 they are six
    assert curve(whole, "lr") == {
        step: pytest.approx(1e-2 * left / 6) for step, left in ((2, 5), (4, 4), (6, 2), (8, 1))
    }
    assert list(curve(whole, "val_loss")) == [0, 4, 8] and whole.state.best_step in (4, 8)
    resumed = make_run(DROPOUT, resume=str(whole.out_dir / "step-000004"), **settings)
    resumed.train()
    assert resumed.state == whole.state
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert curve(resumed, "lr") == {step: lr for step, lr in curve(whole, "lr").items() if step > 4}
