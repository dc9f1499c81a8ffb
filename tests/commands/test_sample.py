from functools import partial

import pytest

from nanogpt import cpu
from nanogpt.commands import main, sample


@pytest.mark.slow
def test_a_model_large_enough_to_be_packed_can_be_compiled_too(run_dir, monkeypatch, capsys):
    monkeypatch.setattr(sample, "pack", partial(cpu.pack, smallest=0))
    texts = []
    for flags in ([], ["--compile"]):
        main(["sample", str(run_dir), "--prompt", "FIRST:", "--max_new_tokens", "5", "--temperature", "0", *flags])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
