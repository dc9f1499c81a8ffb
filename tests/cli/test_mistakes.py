"""A user's mistake is one line with these words and exit code 2, and nothing is written, whatever the command."""

import shlex
import sys
from pathlib import Path

import pretrain
import pytest
import scaling
import torch
from texts import write_data

from nanogpt.cli import main

# what is typed: words of the answer. RUN is a run, RECIPE a recipe; `files` makes the rest
MISTAKES = """
smaple                                        | smaple sample
sample RUN --max_tokens 9                     | --max_tokens
sample RUN --max-new-token 9                  | --max_new_token --max_new_tokens?
sample out/x --start=y                        | --start --prompt?
sample RUN --prompt ÄFFIN                     | 'Ä' position 0
sample RUN --prompt ''                        | prompt empty
sample RUN --prompt FILE:nowhere.txt          | nowhere.txt
sample RUN --prompt FILE:latin                | latin UTF-8 iconv
sample RUN --temperature -1                   | --temperature=-1 1000
sample RUN --device abacus                    | 'abacus' cpu
sample ./nowhere                              | nowhere directory
eval RUN --data other                         | other not the tokenizer
chat RUN                                      | <|im_start|>
plot RUN --out out                            | 'out' .png
export RUN --to link                          | link exists
export RUN --to x --dtype q8_0                | q8_0 --format gguf
page RUN --to x --dtype q8_0                  | q8_0 export --format gguf
sample RUN --dtype int8 --compile=false       | int8 --compile=false
eval RUN --tasks piqa --precision bf16        | --precision --tasks
eval RUN --tasks piqa --data other            | --data --tasks
eval RUN --tasks piqa --split train           | --split --tasks
eval RUN --tasks piqa --stride 4              | --stride --tasks
eval RUN --limit 9                            | --limit --tasks
check-data nowhere                            | 'nowhere' directory
dashboard nowhere                             | nowhere directory
bench --model gpt5                            | 'gpt5' classic
plan /etc/passwd                              | /etc/passwd .py
train RECIPE --n-leyer=3                      | --n_leyer --n_layer?
train RECIPE --device=cpu --data=nowhere      | 'nowhere' directory
train RECIPE --seeds=2 --push_to_hub=me/x     | push_to_hub single
train RECIPE --processes=3                    | --processes=3 GPUs --device=cpu
train nowhere.py                              | nowhere.py file
train own_text.py --data=nothing              | 'nothing'
pretrain.py --depth=0                         | --depth=0 64
pretrain.py --tokens_per_parameter=nan        | --tokens_per_parameter=nan
pretrain.py --aspect_ratio=33                 | even
pretrain.py --data=nowhere                    | 'nowhere'
scaling.py --depths=1,2                       | --depths=1,2 three
scaling.py --depths=3,2,1                     | --depths=3,2,1 rising
scaling.py --depths=2,3,70                    | --depths=2,3,70 64
scaling.py --depths=1,2,3 --data=nowhere      | 'nowhere'
"""
ROWS = [line.rsplit("|", 1) if "<|" not in line else line.split("|", 1) for line in MISTAKES.strip().splitlines()]
RECIPES = Path(__file__).parents[2] / "recipes"
PROGRAMS = {"pretrain.py": pretrain.run, "scaling.py": scaling.run}


@pytest.fixture
def files(tmp_path, text, data, monkeypatch):
    write_data(tmp_path / "other", "abcdefghijklmnop " * 200)
    (tmp_path / "latin").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("typed, words", ROWS, ids=[typed.strip().encode("ascii", "replace") for typed, _ in ROWS])
def test_a_mistake_is_one_line(typed, words, files, trained_dir, monkeypatch, refused):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    places = {"RUN": trained_dir, "RECIPE": RECIPES / "shakespeare_nanogpt.py", "own_text.py": RECIPES / "own_text.py"}
    argv = [str(places.get(word, word)) for word in shlex.split(typed)]
    monkeypatch.setattr(sys, "argv", argv if argv[0] in PROGRAMS else ["nanogpt"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = sorted([*files.rglob("*"), *trained_dir.rglob("*")])
    said = refused(PROGRAMS[argv[0]]) if argv[0] in PROGRAMS else refused(main, argv)
    assert all(word in said for word in words.split()), said
    assert sorted([*files.rglob("*"), *trained_dir.rglob("*")]) == before


@pytest.mark.parametrize(
    "package, typed",
    [
        ("gguf", "export run --format gguf --to x"),
        ("gradio", "playground run"),
        ("onnx", "export run --to new/x --format onnx"),
        ("onnxruntime", "export run --to new/x --format onnx"),
    ],
)
def test_a_missing_package_is_named_before_any_work(package, typed, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("gguf", "page.to_onnx"):
        monkeypatch.delitem(sys.modules, f"nanogpt.extras.{module}", raising=False)
    assert f"pip install {package}" in refused(main, typed.split()) and not list(tmp_path.iterdir())
