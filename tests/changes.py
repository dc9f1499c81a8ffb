"""Breaks one behavior at a time and tells which of the changes no test of the module notices.

    python tests/changes.py                      # all of them, before a release; about half an hour
    python tests/changes.py causal "wsd"         # those with one of these words in their name
    python tests/changes.py --check              # only whether each still fits the code

A change replaces an expression or a statement of a module by another one, wherever and however it is written there, as
the module is imported; no file is touched. It counts as caught if tests that pass without it fail or hang.
"""

import argparse
import ast
import os
import re
import subprocess
import sys
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PATIENCE = 900  # seconds; tests that take longer hang
MARKS = "not nightly and not manual and not device"

# A module, and its tests if they do not mirror it; then lines of `behavior: code -> what takes its place`
CHANGES = r"""
nanogpt.model
    attention sees later tokens: mask is None and (cache is None or T > 1) -> False
    attention drops out while sampling: self.dropout if self.training else 0.0 -> self.dropout
    projections into the residual stream start too large: 2 * self.config.n_layer -> 1
    RoPE turns backwards: torch.stack((-sin, sin), dim=1) -> torch.stack((sin, -sin), dim=1)
    SwiGLU's gate and up are exchanged: gate, up = x.chunk(2, dim=-1) -> up, gate = x.chunk(2, dim=-1)
    padding of the vocabulary gets a probability: padding[self.config.vocab_size:] = -torch.inf -> pass
    the norms of queries and keys are one: self.k_norm(k) -> self.q_norm(k)
    n_head need not be a multiple of n_kv_head: self.n_head % self.kv_heads -> False
nanogpt.model tests/test_config.py
    limits of settings are not checked: not limits[0] <= value <= limits[1] -> False
nanogpt.run.parser tests/test_config.py
    --x=false is true: text.lower() == 'true' -> bool(text)
    flags may be abbreviated:
        super().__init__(formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False, **options)
        -> super().__init__(formatter_class=RawDescriptionHelpFormatter, **options)
nanogpt.optim
    the warm-up starts at zero: (step + 1) -> step
    the cosine rises again after its end:
        min(1.0, (now - start) / max(1, end - start)) -> (now - start) / max(1, end - start)
    wsd decays over the other share: 1 - config.decay_fraction -> config.decay_fraction
    AdamW's betas are exchanged: (config.beta1, config.beta2) -> (config.beta2, config.beta1)
    norms and biases decay:
        {'params': vectors, 'weight_decay': 0.0} -> {'params': vectors, 'weight_decay': decay}
    Muon's momentum is not Nesterov's: return grads -> return [m.clone() for m in momenta]
    Muon's step ignores the shape: max(1, height / width) -> 1
    Muon decays weights without the learning rate: 1 - lr * group["weight_decay"] -> 1 - group["weight_decay"]
    Muon takes stacked matrices for one: its_rows or len(update) -> len(update)
nanogpt.data.tokens
    targets are the inputs: torch.tensor(ids[:, 1:]) -> torch.tensor(ids[:, :-1])
    all epochs have one order: np.uint64(epoch) -> np.uint64(0)
    the seed does not shuffle: np.array([seed], dtype=np.uint64) -> np.array([0], dtype=np.uint64)
    the last window of a split is not evaluated: 1 + math.ceil(last / stride) -> 1 + last // stride
    targets of an overlap count twice: y[torch.arange(T)[None, :] < repeated[:, None]] = -1 -> pass
    processes evaluate the same windows: b * processes + process -> b * processes
nanogpt.data.meta
    an id beyond the vocabulary is accepted: largest >= vocab_size -> largest > vocab_size
    tokens are read as big-endian:
        np.dtype(meta['dtype']).newbyteorder('<') -> np.dtype(meta['dtype']).newbyteorder('>')
nanogpt.data.mixture
    directories of a mixture share one order: seed + k -> seed
nanogpt.text.tokenizer
    the vocabulary ends at its last token: max(self.vocabulary.values()) + 1 -> len(self.vocabulary)
    a special token in a text is one: backend.encode_special_tokens = True -> backend.encode_special_tokens = False
nanogpt.evaluate
    dropout is on in an evaluation: model.eval() -> pass
    targets that the loss ignores are counted: (y != -1).sum().item() -> y.numel()
    bits are nats: loss / math.log(2) / data.bytes_per_token -> loss / data.bytes_per_token
nanogpt.sample
    top_k keeps one token less: logits.topk(top_k) -> logits.topk(max(1, top_k - 1))
    a rank is taken for a token: tokens.gather(1, drawn) -> drawn
    top_p drops the token that reaches it: probs.cumsum(-1) - probs > top_p -> probs.cumsum(-1) > top_p
    a full context keeps its older half: context[:, -max(1, block_size // 2):] -> context[:, : block_size // 2]
    the cache is not cleared: cache.length = 0 -> pass
    a piece of a prompt sees later tokens: T > 1 and start -> False
nanogpt.text.generate
    a cut character is decoded without what came before: previous, pending = pending, [] -> previous, pending = [], []
    a text goes on after its end: token.item() == eos_id -> False
nanogpt.checkpoint
    damage to a file goes unnoticed: crc32(checkpoint / name) != state['files'][name]['crc32'] -> False
    the newest checkpoint is not tried first: reversed(list_checkpoints(run)) -> list_checkpoints(run)
    the best checkpoint is removed: ('best', 'last') -> ('last',)
nanogpt.checkpoint tests/test_forged_checkpoint.py
    weights that are not finite are loaded: not torch.stack(tensor.aminmax()).isfinite().all() -> False
nanogpt.run.resume
    another model is resumed: [name for name in differing if name in fixed] -> []
nanogpt.run.prepare tests/test_train.py
    the optimizer's state is not restored:
        checkpoint.restore(start, gpt, optimizers) -> checkpoint.restore(start, gpt, [])
nanogpt.run.resume tests/test_train.py
    the best loss of a checkpoint that is gone is kept: state.best_step not in saved_steps -> False
nanogpt.train tests/test_optim.py
    the gradient is not clipped: config.grad_clip or torch.inf -> torch.inf
nanogpt.train tests/test_train.py
    the best loss is the largest: loss < state.best_val_loss -> loss > state.best_val_loss
nanogpt.run.stop tests/test_train.py
    a signal ends with exit code 0:
        Stop("stopped", code=128 + number) -> Stop("stopped", code=0)
nanogpt.train tests/run/test_guard.py
    a loss that is not finite enters the mean: torch.where(not_finite > 0, 0.0, loss) -> loss
nanogpt.run.guard
    the batch is halved, its number not doubled:
        config.gradient_accumulation_steps * divisor -> config.gradient_accumulation_steps
nanogpt.run.agree
    processes agree on the smallest: torch.distributed.ReduceOp.MAX -> torch.distributed.ReduceOp.MIN
    the others do not wait for the main process: main_first and not main -> False
nanogpt.hub.weights
    padding is exported: value[: c.vocab_size] -> value
nanogpt.hub.load tests/test_train.py
    a shortened context keeps the last positions:
        model.wpe.weight.detach()[:block_size] -> model.wpe.weight.detach()[-block_size:]
nanogpt.hub.export
    an export with other logits is kept: not (difference <= allowed).all() -> False
nanogpt.cli.commands tests/cli/test_sample.py
    --dtype is ignored: getattr(torch, args.dtype) -> torch.float32
"""


class Change(NamedTuple):
    module: str
    tests: str
    old: str
    new: str


def read_changes() -> dict[str, Change]:
    """The changes by their names."""
    changes, module, tests = {}, "", ""
    for line in re.sub(r"\n {8}", " ", CHANGES).strip().splitlines():
        if line.startswith(" "):
            name, _, code = line.strip().partition(": ")
            changes[name] = Change(module, tests, *code.split(" -> "))
        else:
            module, *named = line.split()
            path = Path("tests", *module.split(".")[1:])
            tests = named[0] if named else str(path.with_name(f"test_{path.name}.py"))
    return changes


def apply(change: Change) -> tuple[str, int]:
    """The module's code with a change in it, and in how many places it is. Layout and comments do not count."""
    source = (ROOT / f"{change.module.replace('.', '/')}.py").read_text(encoding="utf-8")
    code, old, new = (ast.unparse(ast.parse(text)) for text in (source, change.old, change.new))
    return code.replace(old, new), code.count(old)


def run_tests(tests: str, name: str) -> int:
    """Runs tests in this process with a change, or with none (""); returns pytest's exit code."""
    import pytest

    get_code, change = SourceFileLoader.get_code, read_changes().get(name)

    def with_change(self, fullname):
        if change and fullname == change.module:
            return compile(apply(change)[0], self.path, "exec")
        return get_code(self, fullname)

    SourceFileLoader.get_code = with_change
    return pytest.main(["-xq", "-p", "no:cacheprovider", "-m", MARKS, tests])


@cache
def passes(tests: str, name: str = "") -> bool:
    """Whether the tests pass, in a process of their own."""
    program = f"import sys, changes; sys.exit(changes.run_tests({tests!r}, {name!r}))"
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    try:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, timeout=PATIENCE).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def result_of(name: str, check: bool) -> str:
    change = read_changes()[name]
    if not apply(change)[1]:
        return "does not fit the code"
    if check:
        return "fits"
    if not passes(change.tests):
        return f"{change.tests} fails without it"
    return "survives" if passes(change.tests, name) else "caught"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("WORD", nargs="*", help="only changes with one of these in their name")
    parser.add_argument("--check", action="store_true", help="only check that the changes fit the code")
    args = parser.parse_args()
    names = [name for name in read_changes() if not args.WORD or any(word in name for word in args.WORD)]
    good = 0
    for name in names:
        result = result_of(name, args.check)
        if result in ("fits", "caught"):
            good += 1
        else:
            print(f"{result:10} {name}", flush=True)
    print(f"{good} of {len(names)} {'fit the code' if args.check else 'are caught'}")
    return int(good < len(names))


if __name__ == "__main__":
    sys.exit(main())
