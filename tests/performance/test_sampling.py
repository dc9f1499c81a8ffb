import importlib.util
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

path = Path(__file__).with_name("sampling.py")
spec = spec_from_file_location("sampling", path)
sampling = module_from_spec(spec)
spec.loader.exec_module(sampling)


@pytest.mark.slow
def test_every_program_that_is_installed_has_its_line(tmp_path, gpt2_files):
    there = [name for name in ("llama_cpp", "onnxruntime") if importlib.util.find_spec(name)]
    sampling.make_model(tmp_path, n_layer=1, n_head=2, n_embd=64, n_positions=64)
    lines = list(sampling.compare(tmp_path, rounds=2, tokens=4))
    expected = ["fp32"] * len(there) + ["bf16", "int8"] * ("llama_cpp" in there)
    assert [line.split(":")[0] for line in lines] == expected
    for line in lines:
        shown = r"tokens/s, (llama.cpp|ONNX Runtime) [\d.]+: [\d.]+ times its speed \([\d.]+ to [\d.]+\)"
        assert re.fullmatch(rf"\w+: [\d.]+ {shown}", line)
