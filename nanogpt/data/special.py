"""Encodes special tokens that are spelled out in a text, such as <s>, as plain text, for all kinds of tokenizers."""

import json


def without_special(tokenizer):
    """A tokenizers.Tokenizer with the same ids that encodes special tokens in a text as plain text.

    Unigram, WordPiece and WordLevel find special tokens in their own vocabulary, whatever `encode_special_tokens`
    says. Therefore a copy of the tokenizer spells them with a character that no text has.
    """
    from tokenizers import Tokenizer, models

    if isinstance(tokenizer.model, models.BPE) and not tokenizer.model.ignore_merges:
        return tokenizer
    parts = json.loads(tokenizer.to_str())
    model = parts["model"]
    hidden = {token["content"]: f"\ufdd0{token['content']}" for token in parts["added_tokens"] if token["special"]}
    for token in parts["added_tokens"]:
        token["content"] = hidden.get(token["content"], token["content"])
    if isinstance(model["vocab"], list):  # Unigram: pairs of token and score
        model["vocab"] = [[hidden.get(token, token), score] for token, score in model["vocab"]]
    else:
        model["vocab"] = {hidden.get(token, token): i for token, i in model["vocab"].items()}
    if model.get("unk_token"):
        model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
    copy = Tokenizer.from_str(json.dumps(parts | {"post_processor": None}))
    copy.encode_special_tokens = True
    return copy
