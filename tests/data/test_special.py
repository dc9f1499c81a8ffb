"""Special tokens in a text: plain text with every kind of model."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from nanogpt.data.tokenizer import EOT, HFTokenizer, load_tokenizer

UNIGRAM = [(t, -1.0) for t in ("<unk>", "<s>", EOT, "▁", "to", "<", "s", ">", "|", "endoftext", "\u2581to")]
WORDS = {t: i for i, t in enumerate(("[UNK]", "<s>", EOT, "to", "##>", "<s", "<", "##|", "##endoftext"))}


@pytest.mark.parametrize(
    "model, pre_tokenizer",
    [
        (models.Unigram(UNIGRAM, unk_id=0), pre_tokenizers.Metaspace()),
        (models.WordPiece(WORDS, unk_token="[UNK]"), pre_tokenizers.WhitespaceSplit()),
        (models.WordLevel(WORDS, unk_token="[UNK]"), pre_tokenizers.WhitespaceSplit()),
    ],
    ids=["Unigram", "WordPiece", "WordLevel"],
)
def test_special_tokens_that_a_text_spells_are_plain_text(tmp_path, model, pre_tokenizer):
    there = Tokenizer(model)
    there.pre_tokenizer = pre_tokenizer
    there.add_special_tokens(["[UNK]", "<s>", EOT] if "[UNK]" in there.get_vocab() else ["<unk>", "<s>", EOT])
    there.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(tmp_path)
    ids = found.encode(f"to <s> to {EOT} to")
    assert not {1, 2} & {*ids.tolist()}
    assert found.encode_batch([f"to <s> to {EOT} to"])[0].tolist() == ids.tolist()
    assert found.eot_id == 2
    assert found.decode([1]) == "<s>"
    assert found.encode("to").tolist() == there.encode("to").ids
    found.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == json.loads(there.to_str())


def test_a_bpe_reads_them_as_text_and_adds_none():
    bpe = Tokenizer(models.BPE({**{c: i for i, c in enumerate("<|>endoftx")}, EOT: 10}, []))
    bpe.add_special_tokens([EOT])
    bpe.post_processor = processors.TemplateProcessing(f"$A {EOT}", special_tokens=[(EOT, 10)])
    found = HFTokenizer(bpe)
    assert found.eot_id == 10 and found.encode(f"to{EOT}").tolist() == [8, 6, *("<|>endoftx".index(c) for c in EOT)]


def test_added_tokens_that_are_not_special_stay_tokens():
    there = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    there.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    there.add_tokens(["to to"])
    assert HFTokenizer(there).encode("to to").tolist() == [there.token_to_id("to to")]
