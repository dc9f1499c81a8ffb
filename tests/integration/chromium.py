"""Chromium for the tests of pages: apt-get install chromium; pip install playwright."""

import contextlib
import importlib.util
import shutil

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = ([] if PROGRAM else ["chromium"]) + ([] if importlib.util.find_spec("playwright") else ["playwright"])


@contextlib.contextmanager
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:  # root may only run it without its sandbox
        browser = playwright.chromium.launch(executable_path=PROGRAM, headless=True, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def page(browser, own, patience: float, offline: bool = False, **size: int):
    """A page that fails its test if it raised an error or asked for a URL that is not its `own`."""
    context = browser.new_context(viewport=size)
    context.set_default_timeout(patience * 1000)
    context.set_offline(offline)
    asked, errors = [], []
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(error))
    if offline:
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    assert asked and [url for url in asked if not own(url)] == []
    assert errors == []
