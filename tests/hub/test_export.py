"""Exports for transformers: they compute, read and end texts as the model does, and are removed if they do not.

Conversations by the exported template are in integration/test_readers.py, all shapes in test_weights.py.
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
from test_forged_checkpoint import seal_again
from texts import small_bpe
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    GenerationConfig,
    Trainer,
    TrainingArguments,
    pipeline,
)

import nanogpt.hub.load
from data_prep import writer
from nanogpt import GPT, chat, checkpoint
from nanogpt.data.tokenizer import ByteTokenizer, CharTokenizer, load_tokenizer
from nanogpt.data.tokenizer import Tokenizer as HFTokenizer
from nanogpt.hub import card, export, weights
from nanogpt.hub.load import load
from nanogpt.sample import generate

as_transformers_reads_now = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.17"), reason="transformers 5.5 pads and stops differently"
)


@pytest.fixture
def run(tmp_path) -> Path:
    make_checkpoint(tmp_path / "run", CASES["qwen3"], CharTokenizer(CHARACTERS))
    return tmp_path / "run"


@pytest.mark.parametrize("case, bpe", [("gpt2", False), ("llama", True), ("qwen3", False)])
def test_transformers_computes_logits_and_greedy_tokens(tmp_path, case, bpe):
    tokenizer, text = (small_bpe(), "I don't know 12 horses.\n  Été!") if bpe else (CharTokenizer(CHARACTERS), "ROMEO:")
    config = dataclasses.replace(CASES[case], block_size=80, vocab_size=tokenizer.vocab_size)
    make_checkpoint(tmp_path / "run", config, tokenizer)
    to = export.export(tmp_path / "run", tmp_path / "export", say=lambda text: None)
    hf_model, model = AutoModelForCausalLM.from_pretrained(to), load(tmp_path / "run")[0]
    ids = AutoTokenizer.from_pretrained(to)(text, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == tokenizer.encode(text).tolist()
    with torch.no_grad():
        torch.testing.assert_close(hf_model(ids).logits, model(ids), atol=1e-4, rtol=0)
    new = {"do_sample": False, "max_new_tokens": 64, "attention_mask": torch.ones_like(ids[:, :1])}
    expected = generate(model, ids[:, :1], 64, temperature=0, eos_id=tokenizer.eot_id)
    assert torch.equal(hf_model.generate(ids[:, :1], **new), expected)


def test_what_an_export_holds(run, tmp_path, capsys):
    to = export.export(run, tmp_path / "export")
    *notes, verified = capsys.readouterr().out.splitlines()
    assert "Qwen3ForCausalLM, verified" in verified
    assert "padding token" in notes[0] and "does not know" in notes[1]
    assert {p.name for p in to.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("README.md", "training_curve.png"),
    }
    config = json.loads((to / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"] and "auto_map" not in config
    assert (config["vocab_size"], config["max_position_embeddings"]) == (70, 32)
    assert [config[f"{kind}_token_id"] for kind in ("eos", "bos", "pad")] == [None] * 3  # every token is a character
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500.0  # for transformers 4 and mlx-lm
    generation = json.loads((to / "generation_config.json").read_text())
    assert generation["max_new_tokens"] == 16 and "max_length" not in generation
    assert load_file(to / "model.safetensors")["model.embed_tokens.weight"].shape == (70, 32)
    assert (to / card.CURVE).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("talks", [False, True])
def test_end_of_text_and_context_are_those_of_the_model(tmp_path, talks):
    tokenizer = chat.add_tokens(ByteTokenizer()) if talks else ByteTokenizer()
    make_checkpoint(tmp_path / "run", dataclasses.replace(CASES["gpt2"], vocab_size=tokenizer.vocab_size), tokenizer)
    to = export.export(tmp_path / "run", tmp_path / "export", say=lambda text: None)
    read, generation = AutoTokenizer.from_pretrained(to), GenerationConfig.from_pretrained(to)
    assert (read.eos_token, read.eos_token_id, read.model_max_length) == ("<|endoftext|>", 256, 32)
    assert generation.eos_token_id == ([256, 258] if talks else 256)  # the end of a message as well
    assert (read.pad_token, read.pad_token_id, generation.pad_token_id) == ("<|endoftext|>", 256, 256)
    assert (f"```jinja\n{chat.TEMPLATE}\n```" in (to / "README.md").read_text()) == talks
    config = json.loads((to / "config.json").read_text())
    assert config["n_ctx"] == config["n_positions"] == 32 and "rope_theta" not in config


@as_transformers_reads_now
@pytest.mark.parametrize("case", ["gpt2", "llama"])
def test_a_batch_is_padded_with_a_new_token_where_there_is_room(tmp_path, case):
    make_checkpoint(tmp_path / "run", dataclasses.replace(CASES[case], vocab_size=72), CharTokenizer(CHARACTERS))
    to = export.export(tmp_path / "run", tmp_path / "export")
    tokenizer, model = AutoTokenizer.from_pretrained(to), AutoModelForCausalLM.from_pretrained(to)
    assert (tokenizer.pad_token, tokenizer.pad_token_id, model.config.pad_token_id) == ("<pad>", 70, 70)
    greedy = {"do_sample": False, "max_new_tokens": 10}
    together = model.generate(**tokenizer(["ROMEO", "JULIET:"], return_tensors="pt", padding=True), **greedy)
    for text, row in zip(["ROMEO", "JULIET:"], together, strict=True):
        alone = model.generate(**tokenizer(text, return_tensors="pt"), **greedy)[0]
        assert row[-len(alone) :].tolist() == alone.tolist()
    collated = DataCollatorForLanguageModeling(tokenizer, mlm=False)([tokenizer("ROMEO"), tokenizer("JULIET:")])
    assert collated["labels"][0].tolist()[:2] == [-100, -100]
    assert (load(to)[1].name, load(to)[1].vocab_size) == ("char", 70)


def test_an_unknown_character_is_read_as_a_known_one(tmp_path):
    characters = CHARACTERS[:-1] + " "
    make_checkpoint(tmp_path / "run", CASES["gpt2"], CharTokenizer("".join(sorted(characters))))
    to = export.export(tmp_path / "run", tmp_path / "export")
    tokenizer = AutoTokenizer.from_pretrained(to)
    assert tokenizer.decode(tokenizer("Aé你B")["input_ids"], skip_special_tokens=True) == "A  B"
    assert "are read as ' '" in (to / "README.md").read_text()
    with pytest.raises(ValueError, match="'é'"):
        load(to)[1].encode("Aé")


@as_transformers_reads_now
@pytest.mark.parametrize("case", ["gpt2", "qwen3"])
def test_the_pipeline_writes_half_a_context_without_being_told(make_export, case, capsys):
    write = pipeline("text-generation", str(make_export(case) / "export"))
    text = write("ROMEO:")[0]["generated_text"]
    assert text.startswith("ROMEO:") and len(text) == 6 + 16  # GPT-2 would crash at the 33rd character
    capsys.readouterr()
    assert len(write("ROMEO:", max_new_tokens=5)[0]["generated_text"]) == 11
    assert "max_length" not in capsys.readouterr().err  # "both max_new_tokens and max_length seem to have been set"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_smaller_weights_are_verified_as_they_are_stored(run, tmp_path, dtype):
    to = export.export(run, tmp_path / "export", dtype=dtype)
    stored = load_file(to / "model.safetensors")["model.norm.weight"]
    assert stored.dtype == dtype
    assert torch.equal(stored.float(), load(run)[0].ln_f.weight.to(dtype).float())


@pytest.mark.parametrize("damage", ["transposed", "other gelu", "swapped q and k"])
def test_a_wrong_export_is_caught_and_removed(tmp_path, monkeypatch, damage):
    make_checkpoint(tmp_path / "run", CASES["gpt2"], CharTokenizer(CHARACTERS))
    right = weights.to_transformers

    def wrong(*arguments):
        native = right(*arguments)
        attention = native.transformer.h[1].attn
        with torch.no_grad():
            if damage == "transposed":
                attention.c_proj.weight = torch.nn.Parameter(attention.c_proj.weight.t().contiguous())
            elif damage == "swapped q and k":
                q, k, v = attention.c_attn.weight.chunk(3, dim=1)
                attention.c_attn.weight = torch.nn.Parameter(torch.cat((k, q, v), dim=1))
            else:
                native.config.activation_function = "gelu_new"
        return native

    monkeypatch.setattr(weights, "to_transformers", wrong)
    with pytest.raises(ValueError, match="logits differ"):
        export.export(tmp_path / "run", tmp_path / "export")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("where", ["the file", "encoding alone"])
def test_a_wrong_tokenizer_is_caught_and_the_export_removed(run, tmp_path, monkeypatch, where):
    write, encode = export.write_tokenizer, HFTokenizer.encode

    def write_another(directory, *arguments):
        write(directory, *arguments)
        CharTokenizer(CHARACTERS[::-1]).save(directory)

    if where == "the file":
        monkeypatch.setattr(export, "write_tokenizer", write_another)
    else:
        monkeypatch.setattr(HFTokenizer, "encode", lambda self, text: encode(self, text)[::-1])
    with pytest.raises(ValueError, match=r"tokenizer reads .* differently"):
        export.export(run, tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("filename", [None, "temporary"])
@pytest.mark.parametrize("format", ["transformers", "nanogpt"])
def test_a_full_disk_is_named_and_leaves_nothing_behind(run, tmp_path, monkeypatch, format, filename):
    def full(contents, path, *arguments):
        raise OSError(28, "No space left on device", filename and str(path))

    monkeypatch.setattr(checkpoint, "write_json", lambda path, value: full(value, path))  # the last of the files
    monkeypatch.setattr(export.nanogpt, "require_nanogpts", lambda config: None)
    monkeypatch.setattr(export.torch, "save", full)
    with pytest.raises(OSError, match="No space left") as error:
        export.export(run, tmp_path / "export", format=format)
    assert error.value.filename == str(tmp_path / "export")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("target", ["nothing", "empty", "file"])
@pytest.mark.parametrize("format", ["transformers", "nanogpt"])
def test_a_symbolic_link_is_refused_before_anything_is_read(tmp_path, target, format):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(ValueError, match="link is a symbolic link"):
        export.export(tmp_path / "no run", tmp_path / "link", format=format)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("when", ["weights", "tokenizer"])
def test_a_checkpoint_removed_meanwhile_is_replaced_by_the_next(run, tmp_path, monkeypatch, when):
    """As `checkpoint.prune` does it: another name, then removed."""
    tokenizer, said = CharTokenizer(CHARACTERS), []
    first = (run / "best").resolve()
    module, name = (checkpoint, "load_model") if when == "weights" else (nanogpt.hub.load, "load_tokenizer")
    right = getattr(module, name)

    def prunes_first(path, *arguments, **options):
        if path == first and first.is_dir():
            first.rename(run / ".tmp-removed")
            make_checkpoint(run, CASES["qwen3"], tokenizer, seed=1).rename(run / "step-000009")
        return right(path, *arguments, **options)

    monkeypatch.setattr(module, name, prunes_first)
    to = export.export(run, tmp_path / "export", say=said.append)
    assert any("step-000007 was removed" in each for each in said)
    assert load(to)[2] is None and "verified" in said[-1]


def test_an_existing_directory_is_never_overwritten(run, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "mine").write_text("precious")
    with pytest.raises(ValueError, match="exists already"):
        export.export(run, tmp_path / "export")
    assert (tmp_path / "export" / "mine").read_text() == "precious"


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    make_checkpoint(tmp_path / "run", CASES["gpt2"], CharTokenizer(CHARACTERS + "äöü"))
    with pytest.raises(ValueError, match=r"73 tokens.* 70"):
        export.export(tmp_path / "run", tmp_path / "export")


def test_an_export_is_compared_on_the_text_of_a_mixture(run, tmp_path, text):
    source = (run / "best").resolve()
    for name in "ab":
        writer.write(tmp_path / name, text, "char", 0.1, "made up")
    config = checkpoint.read_json(source / "config.json")
    config["train"]["data"] = f"{tmp_path / 'a'}:0.7,{tmp_path / 'b'}:0.3"
    checkpoint.write_json(source / "config.json", config)
    seal_again(source)
    tokenizer = load_tokenizer(tmp_path / "a")
    assert all(tokenizer.decode(row) in text for row in export.real_tokens(load(run)[0], card.read(source)).tolist())


def test_a_continuation_that_differs_is_shown_from_there(exported, monkeypatch):
    to = exported()
    model, tokenizer, _ = load(to.with_name("run"))
    ids = torch.randint(70, (1, 32))
    expected = generate(model, ids[:, :1], 32, temperature=0)[0].tolist()
    wrong = [*expected[:20], (expected[20] + 1) % 70, *expected[21:]]
    monkeypatch.setattr(export, "generate", lambda *args, **options: torch.tensor([wrong]))
    with pytest.raises(ValueError) as error:
        export.verify(to, model, tokenizer, ids, export.special_tokens(tokenizer, 70))
    assert str(error.value).endswith(f"{expected[20:28]}, not with {wrong[20:28]}")


def by_trainer(hf_model, to: Path):
    """Two steps of transformers' own Trainer."""
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(70, (8, 32))]
    options = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    Trainer(hf_model, TrainingArguments(str(to), max_steps=2, **options), train_dataset=rows).train()
    return hf_model


def by_lora(hf_model, to: Path):
    """A merged adapter."""
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(hf_model, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_" in name:
                p.normal_(std=0.3)
    return adapted.merge_and_unload()


@pytest.mark.parametrize("change", [by_trainer, by_lora])
def test_a_model_that_others_have_trained_comes_back(exported, tmp_path, change):
    to = exported()
    changed = change(AutoModelForCausalLM.from_pretrained(to), tmp_path / "trainer").eval()
    changed.save_pretrained(tmp_path / "changed")
    model, idx = GPT.from_pretrained(tmp_path / "changed"), torch.randint(70, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(model(idx), changed(idx).logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(model(idx), load(to)[0](idx))


WORDS = ["the king and the queen spoke to the court", "what news from the king of the court"] * 20


def with_template(kind: str) -> Tokenizer:
    """A tokenizer that adds special tokens to each text, in one of the ways in which published ones do."""
    template = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    alphabet = []
    if kind == "byte-level":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder, alphabet = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
        template = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    special = ["<s>", "</s>", "<unk>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(WORDS, trainer)
    tokenizer.post_processor = template
    assert tokenizer.encode("the king").ids[0] == 0
    return tokenizer


@pytest.mark.parametrize("kind", ["metaspace", "byte-level"])
def test_an_export_adds_no_tokens_that_training_did_not_have(tmp_path, kind, capsys):
    (tmp_path / "tokenizer").mkdir()
    with_template(kind).save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(
        '{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true, "add_eos_token": true}'
    )
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    config = dataclasses.replace(CASES["llama"], vocab_size=tokenizer.vocab_size)
    make_checkpoint(tmp_path / "run", config, tokenizer)
    to = export.export(tmp_path / "run", tmp_path / "export")
    assert "template is left out" in capsys.readouterr().out
    ids = tokenizer.encode("the king").tolist()
    expected = generate(load(tmp_path / "run")[0], torch.tensor([ids]), 8, temperature=0, eos_id=1)[0].tolist()
    for reread in (to, export.export(to, tmp_path / "again")):
        write = pipeline("text-generation", str(reread))
        assert write.tokenizer("the king")["input_ids"] == ids
        new = write("the king", do_sample=False, max_new_tokens=8, return_tensors=True)[0]["generated_token_ids"]
        assert new == expected
    steps = Tokenizer.from_file(str(to / "tokenizer.json")).post_processor
    assert isinstance(steps, processors.ByteLevel) == (kind == "byte-level")


def test_a_template_that_gives_other_tokens_is_noticed(chat_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(chat, "TEMPLATE", chat.TEMPLATE.replace("<|im_end|>\n'", "<|im_end|>'"))
    with pytest.raises(ValueError, match="template gives other tokens"):
        export.export(chat_dir, tmp_path / "export")
    assert not (tmp_path / "export").exists()
