"""The page of `nanogpt page` in Chromium, without a network: it writes the model's own greedy tokens.

Skipped without Chromium, npm and the packages: see chromium.py, and pip install -e '.[onnx]' -c constraints.txt.
"""

import dataclasses
import functools
import shutil
from pathlib import Path

import chromium
import pytest
import torch
from readers import READERS, SHAPES
from shapes import CASES, CHARACTERS, make_checkpoint

from nanogpt.hub.load import load
from nanogpt.text.tokenizer import BPETokenizer, char_tokenizer

to_page = pytest.importorskip("nanogpt.extras.page.to_page")
MISSING = chromium.MISSING + ([] if shutil.which("npm") else ["npm"])

pytestmark = [pytest.mark.nightly, pytest.mark.skipif(bool(MISSING), reason=f"missing: {', '.join(MISSING)}")]
PATIENCE = 120  # seconds
# the page's own function, with ids instead of text
TOKENS = "([ids, n]) => { const out = []; return generate(ids, n, 0, (id) => out.push(id)).then(() => out) }"


@pytest.fixture(scope="module")
def browser():
    with chromium.browser() as browser:
        yield browser


@pytest.fixture
def page(browser):
    own = lambda url: url.startswith(("file://", "blob:", "data:"))  # noqa: E731
    with chromium.page(browser, own, PATIENCE, offline=True, width=900, height=1000) as page:
        yield page


@pytest.fixture(scope="module", autouse=True)
def fetched_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_page, "fetch_library", functools.cache(to_page.fetch_library))
        yield


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory) -> tuple[Path, Path]:
    """A run and its page."""
    run = tmp_path_factory.mktemp("qwen3") / "run"
    make_checkpoint(run, CASES["qwen3"], char_tokenizer(CHARACTERS))
    return run, to_page.write(run, run.with_name("page"), prompt="ABC", say=lambda text: None)


def wait(page, state: str) -> None:
    """Waits by a locator: the page allows no eval, which wait_for_function needs."""
    page.locator("#state", has_text=state).wait_for(timeout=PATIENCE * 1000)


def open_page(page, directory: Path) -> None:
    page.goto((directory / "index.html").as_uri())
    wait(page, "ready after")


def expected(run: Path, ids: list[int], new: int) -> list[int]:
    return load(run)[0].generate(torch.tensor([ids]), new, temperature=0)[0, len(ids) :].tolist()


def test_greedy_tokens_are_the_models_beyond_its_context_too(page, qwen3):
    run, directory = qwen3
    open_page(page, directory)
    tokenizer = load(run)[1]
    ids = tokenizer.encode("ABC").tolist()
    assert page.evaluate(TOKENS, [ids, 70]) == expected(run, ids, 70)  # the context is 32 tokens long
    page.fill("#temperature", "0")
    page.fill("#length", "32")
    page.fill("#prompt", "AéBC")
    page.click("#write")
    wait(page, " a second")
    assert page.locator("#text").text_content() == "ABC" + tokenizer.decode(expected(run, ids, 32))
    assert "1 characters of the prompt are unknown" in page.locator("#state").text_content()
    page.fill("#length", "")
    page.click("#write")
    wait(page, "Give the number of tokens")


@pytest.mark.parametrize("shape", READERS["transformers.js, in Chromium"])
def test_every_shape_writes_the_greedy_tokens_of_the_model(page, tmp_path, gpt2_files, shape):
    config, tokenizer = dataclasses.replace(SHAPES[shape], block_size=64, vocab_size=50257), BPETokenizer.get("gpt2")
    make_checkpoint(tmp_path / "run", config, tokenizer)
    text = "I don't know the king's 12 horses.\n  Été!"
    open_page(page, to_page.write(tmp_path / "run", tmp_path / "page", say=lambda text: None))
    ids = tokenizer.encode(text).tolist()
    assert page.evaluate("(text) => tokenizer.encode(text)", text) == ids
    assert page.evaluate("(ids) => tokenizer.decode(ids)", ids) == text
    assert page.evaluate(TOKENS, [ids, 32]) == expected(tmp_path / "run", ids, 32)
