"""Exports for transformers: they compute, read and end texts as the model does, and are removed if they do not.

Greedy tokens and conversations are in integration/test_readers.py, all shapes in test_weights.py.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file
from shapes import CASES, CHARACTERS, make_checkpoint
from texts import small_bpe
from tokenizers import Tokenizer as Backend
from tokenizers import processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    Trainer,
    TrainingArguments,
    pipeline,
)

from nanogpt import GPT, checkpoint
from nanogpt.hub import card, export, weights
from nanogpt.hub.load import load
from nanogpt.text import chat
from nanogpt.text.tokenizer import END, START, Tokenizer, byte_tokenizer, char_tokenizer

as_transformers_reads_now = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.17"), reason="transformers 5.5 pads and stops differently"
)


@pytest.fixture
def run(tmp_path) -> Path:
    make_checkpoint(tmp_path / "run", CASES["qwen3"], char_tokenizer(CHARACTERS))
    return tmp_path / "run"


def test_what_an_export_holds(run, tmp_path, capsys):
    to = export.export(run, tmp_path / "export", dtype=torch.bfloat16)
    assert "Qwen3ForCausalLM, verified" in capsys.readouterr().out
    assert {p.name for p in to.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("README.md", "training_curve.png"),
    }
    config = json.loads((to / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"] and "auto_map" not in config
    assert (config["vocab_size"], config["max_position_embeddings"]) == (70, 32)
    assert [config[f"{kind}_token_id"] for kind in ("eos", "bos", "pad")] == [None] * 3  # every token is a character
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500.0  # for transformers 4 and mlx-lm
    stored = load_file(to / "model.safetensors")
    assert stored["model.embed_tokens.weight"].shape == (70, 32)
    assert torch.equal(stored["model.norm.weight"], load(run)[0].ln_f.weight.bfloat16())
    assert (to / card.CURVE).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("talks", [False, True])
def test_end_of_text_and_context_are_those_of_the_model(tmp_path, talks):
    tokenizer = byte_tokenizer().with_special([START, END]) if talks else byte_tokenizer()
    make_checkpoint(tmp_path / "run", dataclasses.replace(CASES["gpt2"], vocab_size=tokenizer.vocab_size), tokenizer)
    to = export.export(tmp_path / "run", tmp_path / "export", say=lambda text: None)
    read, generation = AutoTokenizer.from_pretrained(to), GenerationConfig.from_pretrained(to)
    assert (read.eos_token, read.eos_token_id, read.model_max_length) == ("<|endoftext|>", 256, 32)
    assert generation.eos_token_id == ([256, 258] if talks else 256)  # the end of a message as well
    assert (read.pad_token, read.pad_token_id, generation.pad_token_id) == ("<|endoftext|>", 256, 256)
    config = json.loads((to / "config.json").read_text())
    assert config["n_ctx"] == config["n_positions"] == 32 and "rope_theta" not in config


@as_transformers_reads_now
def test_a_batch_is_padded_on_the_left_with_the_end_of_text(tmp_path):
    tokenizer = byte_tokenizer()
    make_checkpoint(tmp_path / "run", dataclasses.replace(CASES["gpt2"], vocab_size=257), tokenizer)
    to = export.export(tmp_path / "run", tmp_path / "export")
    tokenizer, model = AutoTokenizer.from_pretrained(to), AutoModelForCausalLM.from_pretrained(to)
    greedy = {"do_sample": False, "max_new_tokens": 10}
    together = model.generate(**tokenizer(["ROMEO", "JULIET:"], return_tensors="pt", padding=True), **greedy)
    assert together[0, 1].item() == 256
    for text, row in zip(["ROMEO", "JULIET:"], together, strict=True):
        alone = model.generate(**tokenizer(text, return_tensors="pt"), **greedy)[0]
        assert row[-len(alone) :].tolist() == alone.tolist()


def test_an_unknown_character_is_read_as_a_known_one(tmp_path):
    characters = CHARACTERS[:-1] + " "
    make_checkpoint(tmp_path / "run", CASES["gpt2"], char_tokenizer("".join(sorted(characters))))
    to = export.export(tmp_path / "run", tmp_path / "export")
    tokenizer = AutoTokenizer.from_pretrained(to)
    assert tokenizer.decode(tokenizer("Aé你B")["input_ids"], skip_special_tokens=True) == "A  B"
    with pytest.raises(ValueError, match="'é'"):
        load(to)[1].encode("Aé")


@as_transformers_reads_now
def test_the_pipeline_writes_half_a_context_without_being_told(make_export):
    write = pipeline("text-generation", str(make_export("gpt2") / "export"))
    assert len(write("ROMEO:")[0]["generated_text"]) == 6 + 16  # GPT-2 would crash at the 33rd character
    assert len(write("ROMEO:", max_new_tokens=5)[0]["generated_text"]) == 11


def test_a_wrong_export_is_caught_and_removed(run, tmp_path, monkeypatch):
    right = weights.to_transformers

    def wrong(*arguments):
        native = right(*arguments)
        matrix = native.model.layers[1].self_attn.o_proj.weight
        matrix.data = matrix.data.t().contiguous()
        return native

    monkeypatch.setattr(weights, "to_transformers", wrong)
    with pytest.raises(ValueError, match="logits differ"):
        export.export(run, tmp_path / "export")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_wrong_tokenizer_is_caught_and_the_export_removed(run, tmp_path, monkeypatch):
    encode = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: encode(self, text)[::-1])
    with pytest.raises(ValueError, match=r"tokenizer reads .* differently"):
        export.export(run, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_full_disk_is_named_and_leaves_nothing_behind(run, tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "write_json", full)  # the last of the files
    with pytest.raises(OSError, match="No space left") as error:
        export.export(run, tmp_path / "export")
    assert error.value.filename == str(tmp_path / "export")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_what_exists_is_never_overwritten(run, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "mine").write_text("precious")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("export", "link"):
        with pytest.raises(ValueError, match="exists already"):
            export.export(run, tmp_path / name)
    assert (tmp_path / "export" / "mine").read_text() == "precious" and (tmp_path / "link").is_symlink()


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    make_checkpoint(tmp_path / "run", CASES["gpt2"], char_tokenizer(CHARACTERS + "äöü"))
    with pytest.raises(ValueError, match=r"73 tokens.* 70"):
        export.export(tmp_path / "run", tmp_path / "export")


def test_a_model_that_transformers_trainer_has_trained_comes_back(make_export, tmp_path):
    hf_model = AutoModelForCausalLM.from_pretrained(make_export("qwen3") / "export")
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(70, (8, 32))]
    options = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    Trainer(hf_model, TrainingArguments(str(tmp_path), max_steps=2, **options), train_dataset=rows).train()
    hf_model.eval().save_pretrained(tmp_path / "trained")
    model, idx = GPT.from_pretrained(tmp_path / "trained"), torch.randint(70, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(model(idx), hf_model(idx).logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(model(idx), load(make_export("qwen3") / "export")[0](idx))


def test_an_export_adds_no_tokens_that_training_did_not_have(tmp_path):
    """Training does not use a tokenizer's template."""
    backend = Backend.from_str(json.dumps(small_bpe().to_dict()))
    end = ("<|endoftext|>", backend.token_to_id("<|endoftext|>"))
    backend.post_processor = processors.TemplateProcessing(single=f"{end[0]} $A", special_tokens=[end])
    tokenizer = Tokenizer(backend)
    assert backend.encode("the king").ids[0] == end[1]
    make_checkpoint(tmp_path / "run", dataclasses.replace(CASES["llama"], vocab_size=tokenizer.vocab_size), tokenizer)
    to = export.export(tmp_path / "run", tmp_path / "export")
    for reread in (to, export.export(to, tmp_path / "again")):
        assert AutoTokenizer.from_pretrained(reread)("the king")["input_ids"] == tokenizer.encode("the king").tolist()


def test_a_template_that_gives_other_tokens_is_noticed(chat_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(chat, "TEMPLATE", chat.TEMPLATE.replace("<|im_end|>\n'", "<|im_end|>'"))
    with pytest.raises(ValueError, match="template gives other tokens"):
        export.export(chat_dir, tmp_path / "export")
    assert not (tmp_path / "export").exists()
