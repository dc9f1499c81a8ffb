"""The dashboard and the playground in a real browser, while a run trains. Skipped without Chromium: see chromium.py."""

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import chromium
import pytest

ROOT = Path(__file__).parents[2]
SMALL = "--n_layer=1 --n_head=2 --n_embd=16 --n_inner=32 --block_size=16 --batch_size=4 --threads=1".split()
HOSTILE_NAME = "<img src=x onerror=\"document.title='hacked'\">"
HOSTILE_TEXT = "<script>document.title='hacked'</script><b>bold</b>" + HOSTILE_NAME
PATIENCE = 60  # seconds; what is measured is in LOG.md

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(bool(chromium.MISSING), reason=f"missing: {', '.join(chromium.MISSING)}"),
]
OWN = re.compile(r"(http://(127\.0\.0\.1|localhost):|data:|blob:)")
needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")


@pytest.fixture(scope="module")
def browser():
    with chromium.browser() as browser:
        yield browser


@pytest.fixture
def page(browser):
    with chromium.page(browser, OWN.match, PATIENCE, width=1200, height=800) as page:
        yield page


@contextlib.contextmanager
def process(*command):
    """A command that goes on until the test is through with it; yields what it prints, line by line."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([sys.executable, *map(str, command)], env=env, **pipes) as running:
        try:
            yield running.stdout
        finally:
            running.kill()


def address(lines) -> str:
    printed = ""
    for line in lines:
        printed += line
        if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
            return found[0]
    pytest.fail(f"no address in: {printed}")


def until(condition, what: str):
    """Waits for a condition, and returns what it found."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    pytest.fail(f"no {what} within {PATIENCE} s")


def train(data: Path, out: Path, *settings):
    return process(ROOT / "recipes" / "shakespeare.py", *SMALL, f"--data={data}", f"--out_dir={out}", *settings)


@pytest.fixture
def hostile_run(tmp_path) -> Path:
    """A run from elsewhere whose name, settings and sample are HTML and script; its training loss became NaN."""
    run = tmp_path / "out" / HOSTILE_NAME.replace("/", "")
    run.mkdir(parents=True)
    lines = [{"step": step, "tokens": step, "train_seconds": step, "train_loss": 5 - step / 9} for step in range(10)]
    lines.append(lines[-1] | {"step": 10, "val_loss": 4.0, "train_loss": float("nan"), HOSTILE_TEXT: 1})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "samples.jsonl").write_text(json.dumps({"step": 10, "text": HOSTILE_TEXT}) + "\n")
    (run / "config.json").write_text(json.dumps({"train": {HOSTILE_TEXT: HOSTILE_TEXT, "learning_rate": 1}}))
    return run


def test_the_dashboard_follows_a_run_beside_a_hostile_one(page, tmp_path, data, hostile_run):
    live = tmp_path / "out" / "live"
    schedule = "--max_iters=1000000 --log_interval=5 --eval_interval=100 --eval_iters=2 --sample_tokens=30".split()
    command = "-m", "nanogpt", "dashboard", tmp_path / "out"
    with train(data, live, *schedule), process(*command) as lines:
        page.goto(address(lines))
        loss = page.locator("figure").first
        reached = lambda: float(loss.get_attribute("data-end") or 0) if loss.count() else 0  # noqa: E731
        first = until(lambda: reached() > 10 and reached(), "curve of the run that trains")
        until(lambda: reached() > first + 20, "growth of the curve")

        # both runs side by side: curves (a training loss is two lines), settings, samples
        until(lambda: int(loss.get_attribute("data-lines")) >= 6, "curves of both runs")
        names = page.locator("#runs label")
        assert names.count() == 2
        samples = page.locator("#samples article")
        until(lambda: samples.count() == 2, "samples of both runs")
        row = page.locator("#settings tr.differs", has=page.get_by_text("learning_rate", exact=True)).locator("td")
        assert sorted(row.all_inner_texts()) == ["0.01", "1", "learning_rate"]
        assert "nan: train_loss is nan at step 10" in page.locator("#alerts").inner_text()

        # what looks like HTML is text
        assert HOSTILE_TEXT in samples.filter(has_text="bold").locator("pre").inner_text()
        assert HOSTILE_NAME.replace("/", "") in names.filter(has_text="onerror").inner_text()
        assert HOSTILE_TEXT in page.locator("#settings").inner_text()
        assert page.locator("img, body script, #content b:has-text('bold')").count() == 0
        assert page.title() == "nanogpt"


@needs_gradio
def test_the_playground_streams_two_models_and_paints_a_text(page, tmp_path, data):
    with train(data, tmp_path / "run", "--max_iters=20", "--eval_interval=10") as lines:
        assert any("next:" in line for line in lines)
    first, second = tmp_path / "run" / "step-000010", tmp_path / "run" / "step-000020"
    with process("-m", "nanogpt", "playground", first, second, "--device=cpu") as lines:
        page.goto(address(lines))
        page.fill("#prompt textarea", "FIRST:")
        page.get_by_label("number input for tokens").fill("400")
        page.click("#write")
        texts = [page.locator(f"#text-{i} textarea") for i in (0, 1)]
        lengths = set()
        until(lambda: lengths.add(len(texts[0].input_value())) or max(lengths) == 406, "text of 400 tokens")
        until(lambda: len(texts[1].input_value()) == 406, "text of the other model")
        assert len(lengths) > 2  # it grew
        assert texts[0].input_value().startswith("FIRST:") and texts[0].input_value() != texts[1].input_value()

        page.get_by_role("tab", name="Look inside").click()
        page.fill("#given textarea", "The king")
        page.click("#look")
        page.locator("#painted-1 .token").first.wait_for()
        assert page.locator("#painted-0 .token").count() == len("The king") - 1  # the first has no loss

        page.set_viewport_size({"width": 390, "height": 800})
        page.fill("#given textarea", "The king " * 50)
        page.click("#look")
        until(lambda: page.locator("#inside-1 td").count() == 16, "predictions of one layer for all of the context")
        assert page.get_by_role("tabpanel").locator("img").count() == 2  # the heads of each model
        assert page.evaluate("document.documentElement.scrollWidth") == 390  # wide tables scroll on their own

    with process("-m", "nanogpt", "playground", second, "--device=cpu") as lines:
        page.goto(address(lines))
        page.fill("#prompt textarea", "FIRST:")
        page.get_by_label("number input for tokens").fill("20")
        page.click("#write")
        until(lambda: page.locator("#text-0 textarea").input_value()[:6] == "FIRST:", "text of a single model")
