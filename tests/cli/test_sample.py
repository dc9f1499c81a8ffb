from functools import partial

import pytest

from nanogpt.cli import main
from nanogpt.ops import cpu


@pytest.mark.filterwarnings("error:Dynamo detected")  # a cache, about which it warns
def test_packed_weights_can_be_compiled_too(run_dir, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "pack", partial(cpu.pack, smallest=0))
    texts = []
    for flags in ([], ["--compile"]):
        main(["sample", str(run_dir), "--prompt", "FIRST:", "--max_new_tokens", "5", "--temperature", "0", *flags])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_weights_of_8_bits_are_sampled_from(run_dir, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "X86", True)
    packed = []
    monkeypatch.setattr(cpu, "PackedLinear", lambda *args, make=cpu.PackedLinear: packed.append(args) or make(*args))
    main(["sample", str(run_dir), "--prompt", "FIRST:", "--max_new_tokens", "5", "--dtype=int8", "--stats"])
    captured = capsys.readouterr()
    assert captured.out.startswith("FIRST:") and captured.err.endswith("(cpu, int8)\n")
    assert packed and all(args[2] for args in packed)
