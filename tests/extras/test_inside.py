"""Attention weights and states, against those of transformers' eager attention on the export."""

import pytest
import torch
from shapes import CASES, CHARACTERS, make_checkpoint
from transformers import AutoModelForCausalLM

from nanogpt.extras.inside import lens, look
from nanogpt.hub import export
from nanogpt.hub.load import load
from nanogpt.text.tokenizer import char_tokenizer


@pytest.mark.parametrize("case", ["gpt2, biases, tanh", "llama", "qwen3, untied"])
def test_weights_and_predictions_of_each_layer_are_those_of_transformers(tmp_path, case):
    make_checkpoint(tmp_path / "run", CASES[case], char_tokenizer(CHARACTERS))
    export.export(tmp_path / "run", tmp_path / "export", say=lambda text: None)
    native = AutoModelForCausalLM.from_pretrained(tmp_path / "export", attn_implementation="eager")
    ids = torch.randint(70, (20,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = native(ids[None], output_attentions=True, output_hidden_states=True)
    # transformers gives the last hidden states after the final norm
    base = native.base_model
    final_norm = base.ln_f if hasattr(base, "ln_f") else base.norm
    first_layer = native.lm_head(final_norm(expected.hidden_states[1]))[0]
    for name in ("run", "export"):
        model = load(tmp_path / name)[0]
        weights, states = look(model, ids)
        torch.testing.assert_close(weights, torch.cat(expected.attentions), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(states[0], expected.hidden_states[1][0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(lens(model, states[0]), first_layer, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(lens(model, states[-1]), expected.logits[0], atol=1e-4, rtol=1e-4)
