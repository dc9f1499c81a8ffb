"""Keeps special tokens that a text spells out, such as <s>, plain text, whatever kind of model a tokenizer has."""

import json


def without_special(tokenizer):
    """A tokenizers.Tokenizer with the same ids, to which special tokens are text like any other.

    A model that looks words up as a whole (Unigram, WordPiece, WordLevel) finds special tokens in its own vocabulary,
    whatever `encode_special_tokens` says. So they are spelled differently in a copy, in a way that no text has.
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
