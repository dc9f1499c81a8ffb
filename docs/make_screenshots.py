"""Takes the screenshots of the documentation.

    python docs/make_screenshots.py dashboard out/shakespeare out/wide out/adamw
    python docs/make_screenshots.py page out/shakespeare
    python docs/make_screenshots.py playground out/shakespeare out/wide

Each writes docs/NAME.png. All need Chromium and `pip install playwright`. The page also needs npm
and the extra onnx, the playground its extra. Name the runs as readers would, from a clone's root.
"""

import argparse
import contextlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
PROMPT = "ROMEO:"


@contextlib.contextmanager
def served(*command: str):
    """The address of a page that a command of nanogpt serves."""
    words = [sys.executable, "-u", "-m", "nanogpt", *command]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            printed = iter(server.stdout or ())
            yield next(
                filter(None, (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in printed))
            )[0]
        finally:
            server.terminate()


def dashboard(page: Page, runs: list[str]) -> None:
    with served("dashboard", *runs) as address:
        page.goto(address)
        page.locator("figure canvas").first.wait_for()
        page.locator("#samples article").first.wait_for()
        page.wait_for_timeout(2000)  # until the charts are drawn
        page.screenshot(path=HERE / "dashboard.png")


def exported_page(page: Page, runs: list[str]) -> None:
    with TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "nanogpt", "page", runs[0], "--to", f"{directory}/page"]
        subprocess.run([*command, "--prompt", PROMPT], check=True)
        page.goto(Path(directory, "page", "index.html").as_uri())
        page.locator("#state", has_text="ready after").wait_for()
        page.fill("#length", "300")
        page.click("#write")
        page.locator("#state", has_text=" a second").wait_for()
        page.screenshot(path=HERE / "page.png", full_page=True)


def playground(page: Page, runs: list[str]) -> None:
    with served("playground", *runs) as address:
        page.goto(address)
        page.get_by_role("tab", name="Look inside").click()
        page.fill("#given textarea", "ROMEO:\nWhat light through yonder window breaks?")
        page.click("#look")
        page.locator("#inside-0 td").last.wait_for()
        page.wait_for_timeout(2000)  # until the pictures are loaded
        page.screenshot(path=HERE / "playground.png")


SHOTS = {"dashboard": dashboard, "page": exported_page, "playground": playground}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=SHOTS)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="out directories")
    args = parser.parse_args()
    chromium = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    with sync_playwright() as playwright:
        # root may only run Chromium without its sandbox
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        SHOTS[args.what](page, args.runs)
        browser.close()


if __name__ == "__main__":
    main()
