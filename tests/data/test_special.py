"""Special tokens in a text: plain text with every kind of model."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from nanogpt.data.tokenizer import EOT, load_tokenizer

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
