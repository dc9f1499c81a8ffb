"""Writes a static page that runs a model in the browser, with transformers.js and ONNX Runtime.

    nanogpt page out/shakespeare --to exports/page

`npm pack` fetches the libraries, which the page's folder then holds. The page loads nothing from
the network, and works from any static host and from file://. There a browser lets a page read only
scripts, so the model and the libraries are scripts, too: each calls `put` with a file's name and
its contents, gzipped, in base64. The page itself is in web/.
"""

import base64
import gzip
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from nanogpt import checkpoint
from nanogpt.extras.page import to_onnx
from nanogpt.hub import card
from nanogpt.hub.export import writing
from nanogpt.hub.load import load
from nanogpt.model import GPT
from nanogpt.text import chat
from nanogpt.text.generate import default_prompt
from nanogpt.text.tokenizer import END, START

PAGE = Path(__file__).parent / "web"
TRANSFORMERS = "@huggingface/transformers@4.3.1"
ONNXRUNTIME = "onnxruntime-web@1.31.0-dev.20260914-8d85527a0"  # the build that 4.3.1 depends on
LIBRARY = {  # name on the page: package, file in it
    "transformers.js": (TRANSFORMERS, "dist/transformers.min.js"),
    "ort.mjs": (ONNXRUNTIME, "dist/ort-wasm-simd-threaded.mjs"),
    "ort.wasm": (ONNXRUNTIME, "dist/ort-wasm-simd-threaded.wasm"),
    "LICENSE": (TRANSFORMERS, "LICENSE"),
}
MODEL = [to_onnx.FILE, "config.json", "generation_config.json"]
MODEL += ["tokenizer.json", "tokenizer_config.json"]
PIECE = 2**24  # characters of base64 in a script; a string of JavaScript has 2**29 at most
QUESTION = f"{START}user\nHello{END}\n{START}assistant\n"


def write(
    run: str | Path, to: str | Path, *, prompt: str | None = None, say=print, **options
) -> Path:
    """Writes the page of `run` into the directory `to`; `options` are those of an export.

    `prompt` is the page's first prompt, by default one that suits the model. Raises ValueError
    without npm, and what an export raises. On error nothing is left at `to`.
    """
    to = Path(to)
    with writing(to) as page, tempfile.TemporaryDirectory() as directory:
        library = fetch_library()
        model, tokenizer, source = load(run, say=say, trust_recipe=options.get("trust_recipe"))
        facts = describe(model, source, options.get("license", "unknown"))
        exported = Path(directory, "export")
        to_onnx.export(run, exported, name=to.name, say=say, **options)
        shutil.copytree(PAGE, page)
        files = library | {name: (exported / name).read_bytes() for name in MODEL}
        (page / "LICENSE-transformers.js").write_bytes(files.pop("LICENSE"))
        curve = exported / card.CURVE
        if curve.exists():
            shutil.copy(curve, page / "curve.png")
        question = QUESTION if chat.can_chat(tokenizer) else default_prompt(tokenizer)[0]
        facts |= {
            "title": Path(run).absolute().name,
            "curve": curve.exists(),
            "scripts": embed(files, page),
            "prompt": prompt or question,
        }
        (page / "facts.js").write_text(f"const FACTS = {json.dumps(facts, allow_nan=False)};\n")
    say(f"{to / 'index.html'}: open it in a browser, or put the directory on any static host")
    return to


def fetch_library() -> dict[str, bytes]:
    """The files of transformers.js and ONNX Runtime, by npm. Raises ValueError if it fails."""
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError("a page needs npm to fetch transformers.js: install npm (with Node.js)")
    flags = "--loglevel=error --prefer-offline --fetch-retries=1 --fetch-timeout=60000"
    command = [npm, "pack", *flags.split(), TRANSFORMERS, ONNXRUNTIME]
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
        if done.returncode:
            said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise ValueError(f"npm cannot fetch {TRANSFORMERS}: {said[:300]}")
        packages = dict(zip((TRANSFORMERS, ONNXRUNTIME), done.stdout.split(), strict=True))
        found = {}
        for name, (package, file) in LIBRARY.items():
            with tarfile.open(Path(directory, packages[package])) as tar:
                found[name] = tar.extractfile(f"package/{file}").read()
        return found


def embed(files: dict[str, bytes], page: Path) -> list[str]:
    """Writes files as scripts into the page's folder, and returns the scripts' paths."""
    scripts = []
    (page / "files").mkdir()
    for name, content in files.items():
        text = base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
        for start in range(0, len(text), PIECE):
            scripts.append(f"files/{len(scripts)}.js")
            (page / scripts[-1]).write_text(f'put("{name}", "{text[start : start + PIECE]}");\n')
    return scripts


def describe(model: GPT, source: Path | None, license: str) -> dict:
    """What the page tells about the model."""
    c, parameters = model.config, f"{model.get_num_params():,}"
    facts = [
        ("parameters", parameters),
        ("shape", f"{c.n_layer} layers, {c.n_head} heads, {c.n_embd} channels"),
        ("context", f"{c.block_size:,} tokens; vocabulary of {c.vocab_size:,}"),
    ]
    if source is not None:
        state = checkpoint.read_state(source)
        facts.append(("data", card.data_line(checkpoint.load_configs(source)[1].data)))
        facts.append(("training", f"{state.step:,} steps, {state.tokens:,} tokens"))
    facts.append(("license", license))
    about = f"A language model with {parameters} parameters, trained with nanogpt."
    return {"about": about, "block_size": c.block_size, "facts": facts}
