"""Fine-tuning by LoRA: only adapters are trained, they resume exactly, and they are exported merged or for peft."""

import pytest
import torch
from conftest import TINY
from transformers import AutoModelForCausalLM

from nanogpt import GPT, GPTConfig, TrainConfig, checkpoint, load
from nanogpt.cli import main
from nanogpt.hub.export import export
from nanogpt.hub.load import make_room

peft = pytest.importorskip("peft")
SHAPES = {
    "gpt2": TINY,
    "qwen3": GPTConfig.modern(block_size=16, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, n_inner=48),
}


@pytest.fixture(params=SHAPES)
def base(request, make_run, tmp_path):
    """A model to adapt, in transformers' format."""
    make_run(SHAPES[request.param], out_dir=str(tmp_path / "pretrained")).train()
    return export(tmp_path / "pretrained", tmp_path / "base")


def tune(make_run, base, out_dir, **settings):
    settings = {"learning_rate": 0.05, "max_iters": 6, "eval_interval": 3} | settings
    run = make_run(GPTConfig(block_size=16), init_from=str(base), lora_rank=4, out_dir=str(out_dir), **settings)
    run.train()
    return run


def test_only_adapters_are_trained_and_the_merged_model_computes_the_same(base, make_run, tmp_path):
    run = tune(make_run, base, tmp_path / "tuned", max_iters=4, eval_interval=4)
    before = load(base)[0]
    weights = {name.replace(".base_layer.", "."): p for name, p in run.gpt.named_parameters()}
    for name, p in before.named_parameters():
        assert torch.equal(p, weights[name])
    moments = checkpoint.read_tensors(tmp_path / "tuned" / "last" / checkpoint.OPTIMIZER)
    assert moments and all(".lora_" in name for name in moments)
    merged, idx = load(tmp_path / "tuned" / "last")[0], torch.arange(16)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(idx), run.gpt.eval()(idx), atol=1e-5, rtol=1e-5)
        assert (merged(idx) - before(idx)).abs().max() > 0.01


def test_a_resumed_run_is_the_run_that_went_on(base, make_run, tmp_path):
    tune(make_run, base, tmp_path / "whole")
    schedule = {"lr_decay_iters": 6, "eval_interval": 3}
    tune(make_run, base, tmp_path / "half", max_iters=3, **schedule)
    tune(make_run, base, tmp_path / "half", resume="auto", **schedule)
    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        files = [(tmp_path / out / "step-000006" / name).read_bytes() for out in ("whole", "half")]
        assert files[0] == files[1]


def test_an_adapter_in_peft_and_the_merged_export_are_the_model(base, make_run, tmp_path):
    tune(make_run, base, tmp_path / "tuned", max_iters=4, eval_interval=4)
    run, to = str(tmp_path / "tuned"), str(tmp_path / "adapter")
    main(["export", f"{run}/last", "--to", to, "--format", "adapter"])
    export(tmp_path / "tuned" / "last", tmp_path / "merged")
    ours, idx = load(tmp_path / "tuned" / "last")[0], torch.arange(16)[None]
    adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        for model in (adapted.eval(), plain):
            torch.testing.assert_close(model(idx).logits, ours(idx), atol=1e-5, rtol=1e-5)


def test_adapters_need_a_trained_model(make_run):
    with pytest.raises(ValueError, match="lora_rank adapts a trained model: name one by --init_from"):
        make_run(lora_rank=4)


def test_adapters_cannot_tell_new_tokens_apart():
    meta = {"chat": {}, "vocab_size": 62}
    with pytest.raises(ValueError, match="lora_rank would freeze: leave --lora_rank out"):
        make_room(GPT(GPTConfig(vocab_size=60, n_layer=1, n_head=1, n_embd=8)), meta, TrainConfig(lora_rank=2))
