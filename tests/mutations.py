"""Changes of one line that a programmer makes by mistake; the tests of the module should notice each of them.

    python tests/mutations.py                            # all of them, before a release; about an hour on two cores
    python tests/mutations.py --only nanogpt/optim.py    # those of one file
    python tests/mutations.py --list
    python tests/mutations.py --check                    # only whether each piece still occurs once in its file

mutations.txt is the table. Below a file, and the tests to run where they are not those that mirror it, are its changes:
`piece  =>  replacement`, on two lines where one is too short. `why:` below a change is the reason that no test notices
it. Each is made in a temporary copy of the tree, and counts as caught if tests that pass without it fail or hang.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
WORKERS = 2
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", "torch", "accelerate", "transformers", "transformers.modeling_utils"])
MARKS = "not alone and not long"

TABLE = Path(__file__).with_suffix(".txt")


class Mutation(NamedTuple):
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    why: str = ""  # no test notices it

    def __str__(self) -> str:
        return f"{self.file}: {self.old}  =>  {self.new}"


def read_table(table: str | None = None) -> list[Mutation]:
    """The changes, in their order."""
    table = TABLE.read_text(encoding="utf-8") if table is None else table
    found, file, tests, old = [], "", (), ""
    for line in filter(str.strip, table.splitlines()):
        text = line.strip()
        if not line.startswith(" "):
            file, *own = text.split()
            tests = tuple(own) or (mirror(file),)
        elif text.startswith("why:"):
            found[-1] = found[-1]._replace(why=text.removeprefix("why:").strip())
        elif "=>" in text.split():
            piece, _, new = (" " + text).partition(" =>")
            found.append(Mutation(file, piece.strip() or old, new.strip(), tests))
        else:
            old = text
    return found


def mirror(file: str) -> str:
    """The tests of a module: nanogpt/data/tokens.py has tests/data/test_tokens.py."""
    path = Path(file.removeprefix("nanogpt/"))
    return str(Path("tests", path.with_name(f"test_{path.name}")))


def faults(mutations: list[Mutation]) -> list[str]:
    """What is wrong with the table: pieces that do not occur exactly once, replacements that are no Python."""
    found = []
    for m in mutations:
        missing = [name for name in (m.file, *m.tests) if not (ROOT / name).is_file()]
        if missing:
            found.append(f"{m}: {missing[0]} does not exist")
            continue
        source = (ROOT / m.file).read_text(encoding="utf-8")
        if source.count(m.old) != 1:
            found.append(f"{m}: the piece occurs {source.count(m.old)} times")
            continue
        try:
            compile(source.replace(m.old, m.new), m.file, "exec")
        except SyntaxError as error:
            found.append(f"{m}: {error.msg}")
    return found


def copy_tree(target: Path) -> Path:
    """The files that git tracks or would track, as they are now."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0"):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
    return target


def run_tests(copy: Path, tests: tuple[str, ...], timeout: float) -> bool:
    """Whether the tests pass, in a process of their own that has the large libraries already."""
    process = SERVER.Process(target=pytest_in, args=(copy, tests))
    process.start()
    process.join(timeout)
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)  # with all that the tests have started
        process.join()
    return process.exitcode == 0


def pytest_in(copy: Path, tests: tuple[str, ...]) -> None:
    import pytest

    os.setsid()
    os.chdir(copy)
    with open(os.devnull, "r+b") as nothing:
        for stream in range(3):
            os.dup2(nothing.fileno(), stream)
    sys.path[:] = [str(copy)] + [path for path in sys.path if not Path(path or ".").resolve().is_relative_to(ROOT)]
    sys.argv = ["pytest"]
    # no compiled files: Python tells old from new by second and size, and many changes have neither
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", MARKS, *tests]))


def try_all(mutations: list[Mutation], copies: SimpleQueue) -> list[str]:
    """Tries changes of one file with the same tests; caught, survived, kept or broken, for each of them."""
    copy, found = copies.get(), []
    path, tests = copy / mutations[0].file, mutations[0].tests
    try:
        start = time.monotonic()
        sound = run_tests(copy, tests, timeout=900)
        timeout = 60 + 4 * (time.monotonic() - start)
        source = path.read_text(encoding="utf-8")
        for m in mutations:
            path.write_text(source.replace(m.old, m.new), encoding="utf-8")
            passed = sound and run_tests(copy, tests, timeout)
            result = "broken" if not sound else "caught" if not passed else "kept" if m.why else "survived"
            note = {"broken": f" ({' '.join(tests)} fail without it)", "kept": f" ({m.why})"}.get(result, "")
            print(f"{result:8}  {m}{note}", flush=True)
            found.append(result)
            path.write_text(source, encoding="utf-8")
    finally:
        copies.put(copy)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="FILE", help="the changes of these files alone")
    parser.add_argument("--list", action="store_true", help="print the changes and their tests")
    parser.add_argument("--check", action="store_true", help="only check that the table fits the code")
    args = parser.parse_args()
    mutations = [m for m in read_table() if not args.only or m.file in args.only]
    if args.list:
        print(*(f"{m}  [{' '.join(m.tests)}]" for m in mutations), sep="\n")
        return 0
    if wrong := faults(mutations):
        print(*wrong, f"{len(wrong)} of {len(mutations)} changes do not fit the code", sep="\n", file=sys.stderr)
        return 2
    if args.check:
        print(f"{len(mutations)} changes fit the code")
        return 0
    groups = [list(group) for _, group in groupby(mutations, key=lambda m: (m.file, m.tests))]
    os.nice(10)
    with TemporaryDirectory() as directory, ThreadPoolExecutor(WORKERS) as pool:
        copies = SimpleQueue()
        for i in range(WORKERS):
            copies.put(copy_tree(Path(directory, str(i))))
        try:
            longest_first = sorted(groups, key=len, reverse=True)
            results = [result for found in pool.map(lambda g: try_all(g, copies), longest_first) for result in found]
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                os.killpg(child.pid, signal.SIGKILL)
            shutil.rmtree(directory, ignore_errors=True)
            os._exit(130)
    counts = {name: results.count(name) for name in ("caught", "survived", "kept", "broken")}
    share = counts["caught"] / max(len(results), 1)
    print(f"{share:.1%}: " + ", ".join(f"{count} {name}" for name, count in counts.items()), f"of {len(results)}")
    return 1 if counts["survived"] or counts["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
