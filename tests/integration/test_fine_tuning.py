"""GPT-2 as transformers saves it is fine-tuned, exported and compared, by the programs that a user calls."""

import json
import re
import runpy
import sys

import pytest
import torch
from helpers import reset_accelerate
from texts import write_data
from transformers import GPT2Config, GPT2LMHeadModel
from zygote import ROOT

from data_prep import train_tokenizer
from nanogpt.cli import main


@pytest.mark.nightly
def test_gpt2_is_fine_tuned_exported_and_compared(tmp_path, text, text_file, monkeypatch, command, capsys, refused):
    monkeypatch.chdir(tmp_path)
    tiny = GPT2Config(vocab_size=300, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    gpt2 = GPT2LMHeadModel(tiny)
    torch.nn.init.constant_(gpt2.transformer.ln_f.bias, 0.1)  # all biases at zero would be taken for bias=False
    gpt2.save_pretrained("gpt2")
    train_tokenizer.train([str(text_file)], 300).save(tmp_path / "gpt2")
    write_data(tmp_path / "data" / "shakespeare_gpt2", text, str(tmp_path / "gpt2"))
    write_data(tmp_path / "data" / "characters", text)

    def recipe(name: str, *flags: str) -> str:
        reset_accelerate()
        monkeypatch.setattr(sys, "argv", [name, *flags, "--device=cpu"])
        runpy.run_path(str(ROOT / "recipes" / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    flags = ["--init_from=gpt2", "--block_size=16", "--max_iters=4", "--eval_interval=2", "--warmup_iters=0"]
    tuned = recipe("finetune_shakespeare", *flags, "--learning_rate=1e-2", "--precision=fp32")
    before, _, after = (float(x) for x in re.findall(r"validation loss (\d+\.\d{4}) \(", tuned))
    assert before == pytest.approx(5.70, abs=0.2) and after < before  # ln 300 = 5.70

    command("export", "out/finetune_shakespeare", "--to", "tuned")
    runs, data = ("gpt2", "tuned", "out/finetune_shakespeare"), "data/shakespeare_gpt2"
    losses = [result["val_loss"] for result in json.loads(command("eval", *runs, "--data", data, "--json"))]
    assert losses[1] == pytest.approx(losses[2], abs=1e-6) and losses[1] < losses[0]
    assert losses[1] == pytest.approx(after, abs=5e-3)
    said = refused(main, ["eval", "gpt2", "--data=data/characters"])
    assert "is not the tokenizer of gpt2: prepare the data" in said
