"""Python's own standard library and the reference manual in it: text that needs no network.

    python -m data_prep.python_stdlib                      # into data/python_stdlib

A document is a source file (but not tests, installed packages or tables of character sets), or an
article that Python's `help()` shows, such as the one on comparisons. Python 3.11 gives 687
documents of 10.4 MB, or 2.9 million tokens in a byte-pair encoding of 4096 tokens that is trained
on them. A tenth of the documents is for validation. It takes ten seconds.
"""

import json
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from data_prep import text
from data_prep.train_tokenizer import train
from data_prep.writer import write_source
from nanogpt.run.errors import user_errors

# pydoc_data holds the articles as well, as Python strings
LEFT_OUT = {"test", "tests", "idle_test", "encodings", "pydoc_data"}
LEFT_OUT |= {"site-packages", "dist-packages"}
VOCAB_SIZE = 4096


def documents(library: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of each source file below `library`, then of each article of the manual."""
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if not LEFT_OUT.intersection(name.parts):
            with tokenize.open(path) as file:  # uses the encoding that the file declares
                yield str(name), file.read()
    yield from ((f"help({name!r})", article) for name, article in sorted(topics.items()))


def prepare(out: Path | str = "data/python_stdlib", tokenizer: str = "bpe", say=print) -> dict:
    """Prepares the directory `out`; `tokenizer` is bpe, trained here, or a name such as bytes."""
    found = documents(Path(sysconfig.get_path("stdlib")))
    lines = [json.dumps({"name": name, "text": content}) for name, content in found]
    inputs = [write_source(Path(out), "documents.jsonl", lines)]
    trained = train(inputs, VOCAB_SIZE) if tokenizer == "bpe" else tokenizer
    return text.prepare(inputs, out, trained, 0.1, say=say)


if __name__ == "__main__":
    parser = text.make_parser(__doc__)
    parser.add_argument("--out", default="data/python_stdlib", metavar="DIR")
    with user_errors("stopped"):
        out = parser.parse_args().out
        text.report(out, prepare(out))
