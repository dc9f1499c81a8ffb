import json
import os
from functools import cache

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from texts import small_bpe
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from nanogpt.data.tokenizer import (
    EOT,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    HFTokenizer,
    check_same,
    get_tokenizer,
    load_tokenizer,
    merges,
)
from nanogpt.sample import stream_text

MIXED = "Hello wörld 你好 😀 \n\n  def f(x):\t\r\n  it's 1234 — ROMEO:<|endoftext|>"


def test_characters_keep_the_order_of_nanogpts_vocabulary(shakespeare):
    text = shakespeare.read_text()
    chars = CharTokenizer.train(text)
    assert chars.vocab_size == 65
    itos = sorted(set(text))  # nanoGPT's prepare.py
    assert chars.encode("ROMEO:").tolist() == [itos.index(c) for c in "ROMEO:"]
    assert chars.decode(chars.encode(text)) == text


def test_character_tokenizer_survives_saving_and_reads_the_same_in_tokenizers(tmp_path):
    chars = CharTokenizer.train(MIXED)
    chars.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.characters == chars.characters
    reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert reference.encode(MIXED).ids == chars.encode(MIXED).tolist() == again.encode(MIXED).tolist()
    assert reference.decode(reference.encode(MIXED).ids) == again.decode(again.encode(MIXED)) == MIXED


@pytest.mark.parametrize("strange", ["é", "😀", "c"])  # c comes right behind the last known one
def test_an_unknown_character_is_named_with_its_place(strange):
    with pytest.raises(ValueError, match=f"character '{strange}' .position 2. is not among the 2 .*: 'ab'"):
        CharTokenizer.train("abab").encode("ab" + strange)


def test_an_empty_text_makes_no_tokenizer():
    with pytest.raises(ValueError, match="text is empty"):
        CharTokenizer.train("")


@pytest.mark.slow
def test_gpt2_survives_saving_and_reads_the_same_in_tokenizers(gpt2_files, tmp_path):
    gpt2 = BPETokenizer.gpt2()
    assert (gpt2.vocab_size, gpt2.eot_id) == (50257, 50256)
    assert gpt2.encode("Hello world").tolist() == [15496, 995]  # as published with GPT-2
    gpt2.save(tmp_path)
    again = load_tokenizer(tmp_path)
    plain = MIXED.replace("<|endoftext|>", "")
    reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert reference.encode(plain).ids == gpt2.encode(plain).tolist() == again.encode(plain).tolist()
    assert again.decode(again.encode(MIXED)) == MIXED
    assert (again.name, again.vocab_size, again.eot_id) == ("gpt2", 50257, 50256)
    assert 50256 not in gpt2.encode(MIXED)  # written out, a special token is plain text


@pytest.mark.slow
def test_gpt2_is_written_with_the_split_that_readers_in_other_languages_know(gpt2_files, tmp_path):
    gpt2 = BPETokenizer.gpt2()
    gpt2.save(tmp_path)
    there = json.loads((tmp_path / "tokenizer.json").read_text())
    # as in openai-community/gpt2's tokenizer.json, but for add_prefix_space and trim_offsets, which change no id
    assert there["pre_tokenizer"] == {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True
    }  # fmt: skip
    older = [{"type": "Split", "pattern": {"Regex": gpt2.encoding._pat_str}, "behavior": "Isolated", "invert": False}]
    older.append(there["pre_tokenizer"] | {"use_regex": False})
    published, text = load_tokenizer(tmp_path), MIXED + "\n\n\t x'S don't 3½²\u2003 \xa0 ٣ \r\n" + " " * 70
    reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    there["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": older}
    (tmp_path / "tokenizer.json").write_text(json.dumps(there))
    before = load_tokenizer(tmp_path)
    assert type(published) is type(before) is BPETokenizer
    reference.encode_special_tokens = True
    for some in (published, before, gpt2):
        assert some.encode(text).tolist() == reference.encode(text).ids


def test_a_byte_level_tokenizer_that_lacks_bytes_is_not_given_to_tiktoken(tmp_path):
    BPETokenizer(small_tiktoken()).save(tmp_path)
    there = json.loads((tmp_path / "tokenizer.json").read_text())
    vocab = there["model"]["vocab"]
    vocab["aa"] = vocab.pop("z")
    (tmp_path / "tokenizer.json").write_text(json.dumps(there))
    assert type(load_tokenizer(tmp_path)) is HFTokenizer


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_only_a_regular_file_is_read(tmp_path, make):
    make(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"is damaged .*tokenizer\.json is not a regular file"):
        load_tokenizer(tmp_path)
    (tmp_path / "meta.json").touch()  # ours, not nanoGPT's
    with pytest.raises(ValueError, match="is not a regular file"):
        check_same(tmp_path, tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", '{"eos_token": [1]}', '{"eos_token": {"content": 5}}'])
def test_an_odd_tokenizer_config_is_one_line_or_names_no_end(tmp_path, content):
    HFTokenizer(trained()).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    if content.startswith('{"'):
        assert load_tokenizer(tmp_path).eot_id == 0
    else:
        with pytest.raises(ValueError, match=r"tokenizer_config\.json cannot be read"):
            load_tokenizer(tmp_path)


def test_ids_without_a_token_are_marked(gpt2_files):
    for some in (CharTokenizer("ab"), ByteTokenizer(), BPETokenizer(small_tiktoken())):
        assert some.decode([*some.encode("ab"), 301]) == "ab\ufffd"


def test_what_a_library_cannot_encode_is_a_mistake_of_the_users():
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="<unk>"))
    with pytest.raises(ValueError, match=r"the tokenizer cannot read this text .*Missing .UNK. token"):
        HFTokenizer(tokenizer).encode("b")


@pytest.mark.slow
def test_merges_are_those_that_gpt2_was_published_with(gpt2_files):
    pairs = merges(BPETokenizer.gpt2().encoding._mergeable_ranks)
    assert len(pairs) == 50000
    assert pairs[:3] == [(b" ", b"t"), (b" ", b"a"), (b"h", b"e")]


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "tokenizer.json is missing"),
        ("{", "is damaged"),
        ("[]", "is damaged .*not a JSON object"),
        ("[" * 100_000, "is damaged .*RecursionError"),
        ('{"model": {"type": "WordLevel", "vocab": {}}, "added_tokens": []}', "its vocabulary is empty"),
        ('{"model": {"type": "BPE", "vocab": {"a": 1000000000}}}', "it gives 'a' the id 1000000000"),
        ('{"model": {"type": "BPE", "vocab": {"a": -1}}}', "it gives 'a' the id -1"),
        ('{"model": {"type": "BPE", "vocab": {"a": [0]}}}', "it gives 'a' the id .0."),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}}, "added_tokens": [7]}', "is damaged .TypeError"),
        (json.dumps({"model": {"type": "Unigram"}, "decoder": {"type": "Metaspace"}}), "is damaged .*'vocab'"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


@cache
def trained(vocab_size: int = 300) -> Tokenizer:
    """A byte-level BPE that `tokenizers` trained, as published models have it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [MIXED] * 3,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return bpe


@cache
def small_tiktoken() -> tiktoken.Encoding:
    """An encoding with an id that nothing has, as p50k_base and cl100k_base do."""
    ranks = {bytes([b]): b for b in range(256)} | {b"he": 256, b"ll": 257, b"hell": 259, b" w": 260}
    special = {"<|endoftext|>": 258, "<|fim|>": 300}
    return tiktoken.Encoding("small", pat_str=r" ?\w+|\s+|[^\w\s]+", mergeable_ranks=ranks, special_tokens=special)


def test_code_beside_a_tokenizer_is_never_run_nor_asked_about(tmp_path, monkeypatch):
    auto_map = {"AutoTokenizer": [None, "evil.Mine"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Mine", "auto_map": auto_map}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match="contains custom code") as error:
        HFTokenizer.get(str(tmp_path))
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()


@given(st.text())
def test_bytes_are_those_of_utf8_and_come_back(text):
    text = text.encode("utf-8", "ignore").decode()
    ids = ByteTokenizer().encode(text)
    assert ids.tolist() == list(text.encode())
    assert ByteTokenizer().decode(ids) == text
    assert "".join(stream_text(ByteTokenizer(), iter(ids))) == text


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_byte_level_tokenizers_give_every_text_back(text):
    for some in (HFTokenizer(trained()), BPETokenizer(small_tiktoken())):
        ids = some.encode(text)
        assert some.decode(ids) == text
        assert [a.tolist() for a in some.encode_batch([text, "x"])] == [ids.tolist(), some.encode("x").tolist()]
        assert some.eot_id not in ids


@given(st.text(min_size=1))
def test_characters_come_back(text):
    chars = CharTokenizer.train(text)
    assert chars.decode(chars.encode(text)) == text


@pytest.mark.parametrize(
    "make, kind",
    [
        (lambda: CharTokenizer.train(MIXED), CharTokenizer),
        (ByteTokenizer, ByteTokenizer),
        (lambda: BPETokenizer(small_tiktoken()), BPETokenizer),
        (lambda: HFTokenizer(trained()), HFTokenizer),
    ],
)
def test_a_saved_tokenizer_is_the_same_here_and_in_transformers(tmp_path, make, kind):
    from transformers import PreTrainedTokenizerFast

    first = make()
    first.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert type(again) is kind
    assert (again.vocab_size, again.eot_id) == (first.vocab_size, first.eot_id)
    plain = MIXED.replace("<|endoftext|>", "")
    hf_tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert hf_tokenizer.encode(plain) == first.encode(plain).tolist() == again.encode(plain).tolist()
    assert again.decode(again.encode(MIXED)) == MIXED


def test_special_tokens_of_others_are_not_put_around_the_text_nor_read_out_of_it(tmp_path):
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "to": 3, "be": 4}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.enable_padding(length=8)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = get_tokenizer(str(tmp_path))
    assert type(found) is HFTokenizer
    assert found.encode("to be be be be be").tolist() == [3, 4, 4, 4, 4, 4]
    assert found.eot_id == 2
    assert 2 not in found.encode("[SEP]")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "[CLS]"}}')
    assert get_tokenizer(str(tmp_path / "tokenizer.json")).eot_id == 1


def test_a_directory_without_tokenizer_json_is_read_by_autotokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "to", "be", "##er"]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    found = get_tokenizer(str(tmp_path))
    assert found.encode("to beer").tolist() == [5, 6, 7]
    (tmp_path / "saved").mkdir()
    found.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.encode("to beer").tolist() == [5, 6, 7]
    assert again.eot_id == found.eot_id == 3


def test_spaces_between_words_survive_streaming(tmp_path):
    pieces = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁to", -1.0), ("▁be", -1.0), ("t", -3.0)], unk_id=0))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.decoder = decoders.Metaspace()
    found = HFTokenizer(pieces)
    ids = found.encode("to be to")
    assert ids.tolist() == [1, 2, 1]
    assert "".join(stream_text(found, iter(ids))) == "to be to"
    assert "".join(stream_text(found, iter([2, 1]), prompt=[1])) == " be to"


@pytest.mark.parametrize(
    "change",
    [
        {"vocab": {"<unk>": 0, "a": 1, "b": 2}},
        {"vocab": {"a": 1, "b": 2}},
        {"added_tokens": [("<|endoftext|>", 2)]},
        {"normalizer": normalizers.Lowercase()},
    ],
    ids=["a longer token", "ids from 1", "an added token", "a normalizer"],
)
def test_what_only_looks_like_a_tokenizer_of_ours_is_read_by_the_library(tmp_path, change):
    there = Tokenizer(models.WordLevel(change.get("vocab", {"a": 0, "b": 1}), unk_token="<unk>"))
    there.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    there.decoder = decoders.Fuse()
    if "normalizer" in change:
        there.normalizer = change["normalizer"]
    if "added_tokens" in change:
        there.add_special_tokens(["<|endoftext|>"])
    there.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(tmp_path)
    assert isinstance(found, HFTokenizer)
    assert found.encode("ab").tolist() == there.encode("ab").ids


def test_bytes_in_another_order_are_read_by_the_library(tmp_path):
    ByteTokenizer().save(tmp_path)
    there = json.loads((tmp_path / "tokenizer.json").read_text())
    vocab = there["model"]["vocab"]
    there["model"]["vocab"] = {token: 255 - i for token, i in vocab.items()}
    (tmp_path / "tokenizer.json").write_text(json.dumps(there))
    assert load_tokenizer(tmp_path).encode("az").tolist() == [255 - ord("a"), 255 - ord("z")]


def test_a_tokenizer_without_a_pre_tokenizer_is_whole(tmp_path):
    bpe = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    bpe.decoder = decoders.ByteLevel()
    bpe.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("abb").tolist() == [2, 1]


def test_encodings_of_tiktoken_are_had_by_name(monkeypatch, gpt2_files):
    assert get_tokenizer("gpt2").vocab_size == 50257
    assert get_tokenizer("bytes").vocab_size == 257

    def no_network(name):
        raise ConnectionError("no network in this test")

    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    with pytest.raises(OSError, match="tokenizer files of cl100k_base could not be downloaded"):
        get_tokenizer("cl100k_base")


def test_a_name_that_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer 'morse' is not one of char, gpt2, bytes, .*cl100k_base"):
        get_tokenizer("morse")
    with pytest.raises(ValueError, match="has no tokenizer that could be loaded"):
        get_tokenizer(str(tmp_path))


def test_different_tokenizers_are_told_apart(tmp_path):
    for name, text in (("a", "abc"), ("b", "abd"), ("c", "cba")):
        (tmp_path / name).mkdir()
        CharTokenizer.train(text).save(tmp_path / name)
    check_same(tmp_path / "a", tmp_path / "c")
    with pytest.raises(ValueError, match=r"different tokenizers .*'c' is token 2 in one, no token in the other"):
        check_same(tmp_path / "a", tmp_path / "b")


def test_batches_of_gpt2_are_its_single_encodings(gpt2_files):
    gpt2 = BPETokenizer.gpt2()
    texts = [MIXED, "", "a\r\n\0b", "नमस्ते, שלום, 你好, привет 👩‍👩‍👧"]
    for text, ids in zip(texts, gpt2.encode_batch(texts), strict=True):
        assert np.array_equal(ids, gpt2.encode(text))
        assert gpt2.decode(ids) == text


def test_ids_may_leave_numbers_out():
    assert HFTokenizer(Tokenizer(models.WordLevel({"a": 0, "b": 6}, unk_token="a"))).vocab_size == 7


def test_spaces_around_a_special_token_stay_in_the_saved_tokenizer(tmp_path):
    ByteTokenizer().save(tmp_path)
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert saved.encode("a <|endoftext|> b").ids == [97, 32, 256, 32, 98]


def test_added_tokens_that_are_not_special_get_their_ids(tmp_path):
    small_bpe().save(tmp_path)
    file = tmp_path / "tokenizer.json"
    published = Tokenizer.from_file(str(file))
    published.add_tokens(["<nl>"])
    published.save(str(file))
    again = load_tokenizer(tmp_path)
    text = "the<nl>inn<nl>" * 3
    assert again.encode(text).tolist() == published.encode(text, add_special_tokens=False).ids
    assert again.encode(text).tolist().count(published.token_to_id("<nl>")) == 6
    assert again.decode(again.encode(text)) == text


def test_dropout_of_a_tokenizer_is_off(tmp_path):
    vocab = {c: i for i, c in enumerate(["a", "b", "ab", "abab"])}
    Tokenizer(models.BPE(vocab, [("a", "b"), ("ab", "ab")], dropout=0.9)).save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("abab" * 30).tolist() == [3] * 30
    tokenizer.save(tmp_path)  # for an export
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("abab" * 30).ids == [3] * 30


@pytest.mark.parametrize("name", ["[EOS]", "<EOS>", "<|eos|>", "<|end_of_document|>", "[EOT]", "</s>", "[SEP]"])
@pytest.mark.parametrize("bpe", [True, False])
def test_common_names_of_the_end_of_text_are_known(tmp_path, name, bpe):
    if bpe:
        small_bpe().save(tmp_path)
        file = tmp_path / "tokenizer.json"
        file.write_text(file.read_text().replace(EOT, name))
    else:
        plain = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
        plain.add_special_tokens(["[PAD]", name])
        plain.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eot_id == tokenizer.special[name]


def test_a_model_with_vocab_json_and_merges_txt_has_a_tokenizer(tmp_path):
    small_bpe().save(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"] | {EOT: 260}))
    (tmp_path / "merges.txt").write_text("".join(" ".join(pair) + "\n" for pair in model["merges"]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": EOT}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("the inn")) == "the inn" and tokenizer.eot_id == 260
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    check_same(tmp_path, tmp_path / "saved")
