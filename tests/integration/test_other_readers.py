"""Exports have our logits and tokens in transformers 4 and mlx-lm, each in a virtual environment of its own.

The environments are made once, in the directory that NANOGPT_READERS names, or else for each test.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from shapes import CASES, CHARACTERS, make_checkpoint

from nanogpt.data.tokenizer import BPETokenizer, CharTokenizer
from nanogpt.hub.export import export
from nanogpt.hub.load import load

TEXT = "ROMEO:"
READERS = {
    "transformers 4": (
        ["torch==2.13.0", "transformers==4.57.*"],
        """
import sys
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
ids, text, directories = np.load(sys.argv[1]), sys.argv[2], sys.argv[3:]
for directory in directories:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    with torch.no_grad():
        np.save(f"{directory}/read.npy", model(torch.from_numpy(ids)).logits.numpy())
    np.save(f"{directory}/tokens.npy", tokenizer(text)["input_ids"])
    if tokenizer.pad_token:
        assert tokenizer([text, text + text], padding=True)["input_ids"][0][-1] == model.config.pad_token_id
""",
    ),
    "mlx-lm": (
        ["mlx[cpu]", "mlx-lm", "torch==2.13.0"],
        """
import sys
from pathlib import Path
import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model, load_tokenizer
ids, text, directories = np.load(sys.argv[1]), sys.argv[2], sys.argv[3:]
for directory in directories:
    model = load_model(Path(directory))[0]
    np.save(f"{directory}/read.npy", np.array(model(mx.array(ids)).astype(mx.float32)))
    np.save(f"{directory}/tokens.npy", load_tokenizer(Path(directory)).encode(text))
""",
    ),
}
# mlx-lm's GPT-2 is that of GPT-2's own weights: GELU by tanh, tied embeddings
UNKNOWN_TO = {"mlx-lm": ("gpt2", "gpt2, untied, own n_inner")}


def python_with(home: Path, name: str, packages: list[str]) -> str:
    """The Python of an environment that has the packages; skips if they are unavailable."""
    python = str(home / "bin" / "python")
    if not (home / "whole").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True, capture_output=True)
        install = [python, "-m", "pip", "install", "-q", *packages]
        done = subprocess.run(install, capture_output=True, text=True, timeout=1800)
        if done.returncode:
            pytest.skip(f"{name} cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
        (home / "whole").touch()
    return python


@pytest.mark.manual
@pytest.mark.parametrize("name", READERS)
def test_exports_have_our_logits_and_tokens_in_other_readers(tmp_path, name):
    packages, code = READERS[name]
    home = Path(os.environ.get("NANOGPT_READERS") or tmp_path) / name.replace(" ", "-")
    python, ids, exports = python_with(home, name, packages), torch.randint(70, (2, 24)), {}
    np.save(tmp_path / "ids.npy", ids.numpy())
    cases = {case: (config, CharTokenizer(CHARACTERS)) for case, config in CASES.items()}
    if "TIKTOKEN_CACHE_DIR" in os.environ:
        config = dataclasses.replace(CASES["gpt2, biases, tanh"], vocab_size=50257)
        cases["gpt2, its own encoding"] = config, BPETokenizer.gpt2()
    for case, (config, tokenizer) in cases.items():
        if case not in UNKNOWN_TO.get(name, ()):
            # away from the default of rope_theta, with which an export that leaves it out would be right
            make_checkpoint(tmp_path / case / "run", dataclasses.replace(config, rope_theta=500.0), tokenizer)
            exports[case] = export(tmp_path / case / "run", tmp_path / case / "export", say=lambda text: None)
    read = [python, "-c", code, str(tmp_path / "ids.npy"), TEXT, *map(str, exports.values())]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(read, capture_output=True, text=True, timeout=600, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for case, directory in exports.items():
        model, tokenizer, _ = load(tmp_path / case / "run")
        with torch.no_grad():
            difference = np.abs(np.load(directory / "read.npy") - model(ids).numpy()).max()
        print(f"{name}, {case}: logits differ by {difference:.1e}")
        assert difference < 1e-4, case
        assert np.load(directory / "tokens.npy").tolist() == tokenizer.encode(TEXT).tolist(), case
