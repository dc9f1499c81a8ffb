"""Exports: verified by transformers in a process that knows nothing of this package, refused where they are wrong."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import conversations
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from shapes import CASES, CHARACTERS, make_checkpoint
from test_forged_checkpoint import seal_again
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import nanogpt.hub.load
from data_prep import writer
from nanogpt import GPT, chat, checkpoint
from nanogpt.data.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, HFTokenizer, load_tokenizer
from nanogpt.hub import card, export, weights
from nanogpt.hub.load import load
from nanogpt.sample import generate

as_transformers_reads_now = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.17"), reason="transformers 5.5 pads and stops differently"
)

# reads the exports without this package and without a network
READER = """
import json, sys
sys.modules["nanogpt"] = None  # importing it raises ImportError
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
out = {}
for name, directory, text in json.loads(sys.argv[1]):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out[f"{name} logits"] = model(ids).logits.clone()
    new = {"do_sample": False, "max_new_tokens": 64, "attention_mask": torch.ones_like(ids[:, :1])}
    out[f"{name} greedy"] = model.generate(ids[:, :1], **new)
save_file(out, sys.argv[2])
"""


@pytest.fixture
def run(tmp_path) -> Path:
    make_checkpoint(tmp_path / "run", CASES["qwen3"], CharTokenizer(CHARACTERS))
    return tmp_path / "run"


def read_by_transformers(tmp_path: Path, exports: list) -> dict[str, torch.Tensor]:
    arguments = [json.dumps(exports), str(tmp_path / "read.safetensors")]
    subprocess.run([sys.executable, "-c", READER, *arguments], check=True, timeout=300, cwd=tmp_path)
    return load_file(tmp_path / "read.safetensors")


def test_exports_of_every_kind_reproduce_logits_and_greedy_tokens(tmp_path, gpt2_files):
    bpe, text = BPETokenizer.gpt2(), "I don't know the king's 12 horses.\n  Été!"
    cases = {name: (dataclasses.replace(c, block_size=80), CharTokenizer(CHARACTERS)) for name, c in CASES.items()}
    for name in ("gpt2, biases, tanh", "llama", "qwen3, untied"):
        cases[f"{name}, bpe"] = (dataclasses.replace(CASES[name], block_size=80, vocab_size=50257), bpe)
    exports = []
    for name, (config, tokenizer) in cases.items():
        make_checkpoint(tmp_path / name / "run", config, tokenizer)
        export.export(tmp_path / name / "run", tmp_path / name / "export", say=lambda text: None)
        exports.append((name, str(tmp_path / name / "export"), text if tokenizer is bpe else CHARACTERS[5:50]))
    read = read_by_transformers(tmp_path, exports)
    for name, _, text in exports:
        model, tokenizer, _ = load(tmp_path / name / "run")
        ids = torch.from_numpy(tokenizer.encode(text))[None]
        with torch.no_grad():
            assert (model(ids) - read[f"{name} logits"]).abs().max() < 1e-4, name
        assert torch.equal(generate(model, ids[:, :1], 64, temperature=0), read[f"{name} greedy"]), name


def test_what_an_export_holds(run, tmp_path, capsys):
    to = export.export(run, tmp_path / "export")
    *notes, verified = capsys.readouterr().out.splitlines()
    assert verified.startswith(f"{to}: Qwen3ForCausalLM, verified: logits differ by")
    assert "no room for a padding token" in notes[0] and "characters that the model does not know" in notes[1]
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


def test_end_of_text_and_context_are_those_of_the_model(tmp_path, gpt2_files):
    from transformers import AutoTokenizer, GenerationConfig

    make_checkpoint(tmp_path / "run", dataclasses.replace(CASES["gpt2"], vocab_size=50257), BPETokenizer.gpt2())
    to = export.export(tmp_path / "run", tmp_path / "export")
    tokenizer = AutoTokenizer.from_pretrained(to)
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.model_max_length) == ("<|endoftext|>", 50256, 32)
    assert GenerationConfig.from_pretrained(to).eos_token_id == 50256
    assert (tokenizer.pad_token, tokenizer.pad_token_id, GenerationConfig.from_pretrained(to).pad_token_id) == (
        *("<|endoftext|>", 50256, 50256),
    )
    config = json.loads((to / "config.json").read_text())
    assert config["n_ctx"] == config["n_positions"] == 32 and "rope_theta" not in config


@as_transformers_reads_now
@pytest.mark.parametrize("case", ["gpt2", "llama"])
def test_batches_of_different_lengths_are_padded_with_a_new_token_where_there_is_room(tmp_path, case):
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

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


def test_an_unknown_character_is_read_as_a_known_one_and_the_card_says_so(tmp_path):
    from transformers import AutoTokenizer

    characters = CHARACTERS[:-1] + " "
    make_checkpoint(tmp_path / "run", CASES["gpt2"], CharTokenizer("".join(sorted(characters))))
    to = export.export(tmp_path / "run", tmp_path / "export")
    tokenizer = AutoTokenizer.from_pretrained(to)
    assert tokenizer.decode(tokenizer("Aé你B")["input_ids"], skip_special_tokens=True) == "A  B"
    assert "characters that the model does not know are read as ' '" in (to / "README.md").read_text()
    with pytest.raises(ValueError, match=r"character 'é' .position 1. is not among the 70"):
        load(to)[1].encode("Aé")


@as_transformers_reads_now
@pytest.mark.parametrize("case", ["gpt2", "qwen3"])
def test_the_pipeline_writes_within_the_context_without_being_told(tmp_path, case, capsys):
    from transformers import pipeline

    make_checkpoint(tmp_path / "run", CASES[case], CharTokenizer(CHARACTERS))
    to = export.export(tmp_path / "run", tmp_path / "export")
    write = pipeline("text-generation", str(to))
    text = write("ROMEO:")[0]["generated_text"]
    assert (
        text.startswith("ROMEO:") and len(text) == 6 + 16
    )  # half the context; GPT-2 would crash at the 33rd character
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
    with pytest.raises(ValueError, match="the export is wrong: logits differ by"):
        export.export(tmp_path / "run", tmp_path / "export")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_wrong_tokenizer_is_caught(run, tmp_path, monkeypatch):
    right = export.write

    def wrong(directory, *arguments):
        right(directory, *arguments)
        CharTokenizer(CHARACTERS[::-1]).save(directory)

    monkeypatch.setattr(export, "write", wrong)
    with pytest.raises(ValueError, match=r"transformers' tokenizer reads .* differently"):
        export.export(run, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_tokenizer_that_differs_in_its_encoding_alone_is_caught(run, tmp_path, monkeypatch):
    encode = HFTokenizer.encode
    monkeypatch.setattr(HFTokenizer, "encode", lambda self, text: encode(self, text)[::-1])
    with pytest.raises(ValueError, match=r"transformers' tokenizer reads .* differently"):
        export.export(run, tmp_path / "export")


@pytest.mark.parametrize("filename", [None, "temporary"])
@pytest.mark.parametrize("format", ["transformers", "nanogpt"])
def test_a_full_disk_is_named_and_leaves_nothing_behind(run, tmp_path, monkeypatch, format, filename):
    def full(contents, path, *arguments):
        raise OSError(28, "No space left on device", filename and str(path))

    monkeypatch.setattr(checkpoint, "write_json", lambda path, value: full(value, path))  # the last of the files
    monkeypatch.setattr(export.to_nanogpt, "require_nanogpts", lambda config: None)
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
    with pytest.raises(ValueError, match="link is a symbolic link: name its target, or another path"):
        export.export(tmp_path / "no run", tmp_path / "link", format=format)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("when", ["weights", "tokenizer", "info"])
def test_a_checkpoint_that_its_run_removes_meanwhile_is_replaced_by_the_next(run, tmp_path, monkeypatch, when):
    """As `checkpoint.prune` does it: another name, then removed."""
    tokenizer, said = CharTokenizer(CHARACTERS), []
    first = (run / "best").resolve()
    part = {"weights": (checkpoint, "load_model"), "tokenizer": (nanogpt.hub.load, "load_tokenizer")}
    module, name = part.get(when, (card, "read"))
    right = getattr(module, name)

    def prunes_first(path, *arguments, **options):
        if path == first and first.is_dir():
            first.rename(run / ".tmp-removed")
            make_checkpoint(run, CASES["qwen3"], tokenizer, seed=1).rename(run / "step-000009")
        return right(path, *arguments, **options)

    monkeypatch.setattr(module, name, prunes_first)
    to = export.export(run, tmp_path / "export", say=said.append)
    assert "step-000007 was removed while it was read: taking the next" in said
    assert load(to)[2] is None and "verified" in said[-1]


def test_a_checkpoint_that_is_damaged_but_there_is_not_read_for_ever(run, monkeypatch):
    def damaged(*arguments, **options):
        raise ValueError("damaged")

    monkeypatch.setattr(checkpoint, "load_model", damaged)
    with pytest.raises(ValueError, match="damaged"):
        load(run)


def test_an_existing_directory_is_never_overwritten(run, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "mine").write_text("precious")
    with pytest.raises(ValueError, match="exists already"):
        export.export(run, tmp_path / "export")
    assert (tmp_path / "export" / "mine").read_text() == "precious"


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    make_checkpoint(tmp_path / "run", CASES["gpt2"], CharTokenizer(CHARACTERS + "äöü"))
    with pytest.raises(ValueError, match="the tokenizer has 73 tokens, but the model only 70"):
        export.export(tmp_path / "run", tmp_path / "export")


def test_another_checkpoint_than_the_best_can_be_named(tmp_path):
    tokenizer = CharTokenizer(CHARACTERS)
    make_checkpoint(tmp_path / "run", CASES["gpt2"], tokenizer)
    assert load(tmp_path / "run", which="step-7")[2].name == "step-000007"
    with pytest.raises(ValueError, match="has no checkpoint step-9"):
        load(tmp_path / "run", which="step-9")


@pytest.mark.parametrize("which", ["bset", "step-abc", "step-", "../run"])
def test_what_names_no_checkpoint_is_refused(run, which):
    with pytest.raises(ValueError, match=f"checkpoint='{which}' is not one of best, last, step-N"):
        load(run, which=which)


def test_a_checkpoint_that_is_asked_for_is_not_replaced_by_another(run, tmp_path):
    to = export.export(run, tmp_path / "export")
    (run / "best").unlink()
    with pytest.raises(ValueError, match="has no checkpoint best"):
        load(run, which="best")
    with pytest.raises(ValueError, match="export has no checkpoint last"):
        load(to, which="last")


def test_a_push_tells_which_checkpoint_it_takes(run, monkeypatch):
    said = []
    (run / "step-000007").rename(run / "step-000003")
    damaged = make_checkpoint(run, CASES["qwen3"], CharTokenizer(CHARACTERS))
    (damaged / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(export.client, "make_repository", lambda *args: None)
    monkeypatch.setattr(export.client, "upload", lambda *args: "address")
    export.push(run, "alice/model", say=said.append)
    assert "step-000007 is damaged: model.safetensors has 0 bytes" in said[0]
    assert said[-2].startswith("alice/model: Qwen3ForCausalLM, verified") and said[-1] == "pushed: address"


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


def test_a_continuation_that_differs_is_shown_from_there(run, tmp_path, monkeypatch):
    to, (model, tokenizer, _) = export.export(run, tmp_path / "export"), load(run)
    ids = torch.randint(70, (1, 32))
    expected = generate(model, ids[:, :1], 32, temperature=0)[0].tolist()
    wrong = [*expected[:20], (expected[20] + 1) % 70, *expected[21:]]
    monkeypatch.setattr(export, "generate", lambda *args, **options: torch.tensor([wrong]))
    with pytest.raises(ValueError) as error:
        export.verify(to, model, tokenizer, ids, export.special_tokens(tokenizer, 70))
    assert str(error.value).endswith(f"it continues with {expected[20:28]}, not with {wrong[20:28]}")


def test_an_export_can_be_named_wherever_a_run_can(run, tmp_path):
    to = export.export(run, tmp_path / "export")
    _, tokenizer, found = load(to)
    assert found is None and tokenizer.decode(tokenizer.encode("ROMEO")) == "ROMEO"
    again = export.export(to, tmp_path / "again")  # and exported once more
    a, b = load_file(to / "model.safetensors"), load_file(again / "model.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_model_trained_on_with_transformers_trainer_comes_back(run, tmp_path):
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    to = export.export(run, tmp_path / "export")
    hf_model = AutoModelForCausalLM.from_pretrained(to)
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(70, (8, 32))]
    arguments = TrainingArguments(
        str(tmp_path / "trainer"), max_steps=2, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True
    )
    trainer = Trainer(hf_model, arguments, train_dataset=rows)
    trainer.train()
    trainer.save_model(tmp_path / "trained")
    model, idx = GPT.from_pretrained(tmp_path / "trained"), torch.randint(70, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(model(idx), hf_model.eval()(idx).logits, atol=1e-4, rtol=1e-4)
    assert not torch.equal(model.ln_f.weight, load(run)[0].ln_f.weight)


def test_a_merged_lora_comes_back_and_samples(run, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    to = export.export(run, tmp_path / "export")
    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(to), peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    )
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_" in name:
                p.normal_(std=0.3)
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    model, idx = GPT.from_pretrained(tmp_path / "merged"), torch.randint(70, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(model(idx), merged(idx).logits, atol=1e-4, rtol=1e-4)
        assert (model(idx) - load(run)[0](idx)).abs().max() > 0.1
    assert generate(model, idx, 10, seed=0).shape == (2, 30)


def test_a_damaged_export_is_one_line(run, tmp_path):
    to = export.export(run, tmp_path / "export")
    weights = load_file(to / "model.safetensors")
    weights.pop("model.layers.1.self_attn.k_proj.weight")
    save_file(weights, to / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks the tensor model\.layers\.1\.self_attn\.k_proj\.weight"):
        load(to)
    (to / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        load(to)


def test_what_is_no_model_at_all_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="has no intact checkpoint"):
        load(tmp_path)
    with pytest.raises(ValueError, match="is not a directory: name an out directory"):
        load(tmp_path / "typo")


def unigram(directory: Path) -> HFTokenizer:
    """A tokenizer as SentencePiece's are: Unigram, spaces as ▁, its own name for the end of a text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    text = ["the king and the queen spoke to the court", "what news from the king of the court"] * 20
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["</s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(text, trainer)
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    return load_tokenizer(directory)


def test_any_hugging_face_tokenizer_travels_along(tmp_path):
    from transformers import AutoTokenizer, pipeline

    tokenizer = unigram(tmp_path / "tokenizer")
    assert tokenizer.eot_id == 0
    config = dataclasses.replace(CASES["llama"], vocab_size=tokenizer.vocab_size)
    make_checkpoint(tmp_path / "run", config, tokenizer)
    to = export.export(tmp_path / "run", tmp_path / "export")
    hf_tokenizer = AutoTokenizer.from_pretrained(to)
    assert hf_tokenizer("the queen")["input_ids"] == tokenizer.encode("the queen").tolist()
    assert (hf_tokenizer.eos_token, hf_tokenizer.eos_token_id) == ("</s>", 0)
    assert pipeline("text-generation", str(to))("the king")[0]["generated_text"].startswith("the king")
    assert load(to)[1].eot_id == 0


WORDS = ["the king and the queen spoke to the court", "what news from the king of the court"] * 20


def with_template(kind: str) -> Tokenizer:
    """A tokenizer that adds special tokens to each text, in one of the ways in which published ones do."""
    names = ["<s>", "</s>", "<unk>", "<pad>"]
    bos, eos = ("<s>", 0), ("</s>", 1)
    template = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[bos, eos])
    if kind in ("bert", "llama"):
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>") if kind == "bert" else models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace() if kind == "bert" else pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.WordPiece() if kind == "bert" else decoders.Metaspace()
        trainer = (trainers.WordPieceTrainer if kind == "bert" else trainers.BpeTrainer)(
            vocab_size=80, special_tokens=names
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=names, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
    tokenizer.train_from_iterator(WORDS, trainer)
    tokenizer.post_processor = {
        "bert": processors.BertProcessing(eos, bos),
        "llama": processors.TemplateProcessing(single="<s> $A", special_tokens=[bos]),
        "roberta": processors.RobertaProcessing(eos, bos),
        "template": template,
        "sequence": processors.Sequence([processors.ByteLevel(trim_offsets=False), template]),
    }[kind]
    assert tokenizer.encode("the king").ids[0] == 0
    return tokenizer


@pytest.mark.parametrize("kind", ["bert", "llama", "roberta", "template", "sequence"])
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
    assert "template adds <s>" in capsys.readouterr().out
    ids = tokenizer.encode("the king").tolist()
    expected = generate(load(tmp_path / "run")[0], torch.tensor([ids]), 8, temperature=0, eos_id=1)[0].tolist()
    for reread in (to, export.export(to, tmp_path / "again")):
        write = transformers.pipeline("text-generation", str(reread))
        assert write.tokenizer("the king")["input_ids"] == ids
        new = write("the king", do_sample=False, max_new_tokens=8, return_tensors=True)[0]["generated_token_ids"]
        assert new == expected
    steps = Tokenizer.from_file(str(to / "tokenizer.json")).post_processor
    assert isinstance(steps, processors.ByteLevel) == (kind == "sequence")


def test_transformers_answers_conversations_as_the_model_does(chat_run, tmp_path, capsys):
    to = export.export(chat_run, tmp_path / "export")
    model, tokenizer, _ = load(chat_run)
    messages = conversations.talk("101?")
    expected = "".join(chat.answer(model, tokenizer, messages, 20, temperature=0))
    talk = transformers.pipeline("text-generation", str(to))
    reply = talk(messages, do_sample=False, max_new_tokens=20)[0]["generated_text"]
    assert reply == [*messages, {"role": "assistant", "content": expected}] and expected == "yes"
    assert talk.tokenizer.eos_token == "<|im_end|>" and "'role': 'user'" in (to / "README.md").read_text()


def test_texts_end_at_the_end_of_a_message_as_well(tmp_path):
    tokenizer = chat.add_tokens(ByteTokenizer())
    make_checkpoint(tmp_path / "run", dataclasses.replace(CASES["qwen3"], vocab_size=259), tokenizer)
    to = export.export(tmp_path / "run", tmp_path / "export", say=lambda text: None)
    assert json.loads((to / "generation_config.json").read_text())["eos_token_id"] == [256, 258]
    assert json.loads((to / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"


def test_a_template_that_gives_other_tokens_is_noticed(chat_run, tmp_path, monkeypatch):
    monkeypatch.setattr(chat, "TEMPLATE", chat.TEMPLATE.replace("<|im_end|>\n'", "<|im_end|>'"))
    with pytest.raises(ValueError, match="template gives other tokens for a conversation"):
        export.export(chat_run, tmp_path / "export")
    assert not (tmp_path / "export").exists()
