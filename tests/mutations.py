r"""Changes of one line that a programmer makes by mistake; the tests of the module should notice each of them.

    python tests/mutations.py                            # all of them, before a release; about an hour on two cores
    python tests/mutations.py --only nanogpt/optim.py    # those of one file
    python tests/mutations.py --list
    python tests/mutations.py --check                    # only whether each piece still occurs once in its file

In TABLE a file, and the tests to run where they are not those that mirror it, stands above its changes:
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
MARKS = "not slow and not alone and not long"

TABLE = r"""
nanogpt/model.py
    dropout = self.dropout if self.training else 0.0  =>  dropout = self.dropout
    gradient_checkpointing and self.training:  =>  gradient_checkpointing and not self.training:
    std=0.02 / math.sqrt(2 * self.config.n_layer)  =>  std=0.02 / math.sqrt(self.config.n_layer)
    VOCAB_MULTIPLE * math.ceil(  =>  VOCAB_MULTIPLE * math.floor(
    torch.cat((-sin, sin), dim=-1)  =>  torch.cat((sin, -sin), dim=-1)
    .tril(cache.length)  =>  .tril()
    x + self.dropout(self.attn(self.ln_1(x), rope, cache))  =>  x + self.attn(self.ln_1(x), rope, cache)
    x = self.drop(x)  =>  pass
    cache.length += T  =>  cache.length += 1
    ignore_index=-1, reduction=reduction  =>  ignore_index=-100, reduction=reduction
    padding[self.config.vocab_size :] = -torch.inf  =>  padding[self.config.vocab_size + 1 :] = -torch.inf
    gate, up = x.chunk(2, dim=-1)  =>  up, gate = x.chunk(2, dim=-1)
    12 * self.config.n_layer * self  =>  6 * self.config.n_layer * self
    padding * (1 if self.lm_head is None else 2)  =>  padding
    .detach()[:block_size].clone()  =>  .detach()[-block_size:].clone()
    self.k_norm.weight.expand(  =>  self.q_norm.weight.expand(
nanogpt/optim.py
    (step + 1) / (config.warmup_iters + 1)  =>  step / config.warmup_iters
    (config.beta1, config.beta2), config.weight_decay  =>  (config.beta2, config.beta1), config.weight_decay
    AdamW([others], betas=betas, fused=True)  =>  AdamW([others], betas=betas[::-1], fused=True)
    {"params": vectors, "weight_decay": 0.0  =>  {"params": vectors, "weight_decay": decay
    min(1.0, (step - start) / max(1, end - start))  =>  (step - start) / max(1, end - start)
    round(end * (1 - config.decay_fraction))  =>  round(end * config.decay_fraction)
    config.lr_decay_iters or config.max_iters  =>  config.max_iters
    config.muon_learning_rate / config.learning_rate  =>  config.learning_rate / config.muon_learning_rate
    momentum=config.muon_momentum, weight_decay=decay  =>  momentum=config.beta1, weight_decay=decay
    muon_momentum, weight_decay=decay, dtype=dtype  =>  muon_momentum, dtype=dtype
    momentum.lerp_(grad, 1 - group["momentum"])  =>  momentum.lerp_(grad, group["momentum"])
    update = grad.lerp(momentum, group["momentum"])  =>  update = momentum
    1 - lr * weight_decay  =>  1 - weight_decay
    max(1, shape[0] / shape[1])  =>  max(1, shape[1] / shape[0])
    lr * group.get("lr_scale", 1.0)  =>  lr
    rows = group["rows"] or [p.size(0)]  =>  rows = [p.size(0)]
nanogpt/optim.py tests/test_train.py
    optimizer.found_inf = not_finite  =>  pass
    optimizer.zero_grad()  =>  pass
nanogpt/config.py
    return text.lower() == "true"  =>  return bool(text)
    allow_abbrev=False  =>  allow_abbrev=True
    os.environ.get("RANK", "0") == "0"  =>  os.environ.get("LOCAL_RANK", "0") == "0"
    code: int = 2  =>  code: int = 1
    sys.exit(130)  =>  sys.exit(1)
    print(f"error: {message}", file=sys.stderr, flush=True)  =>  print(f"error: {message}", flush=True)
nanogpt/data/tokenizer.py
    "".join(sorted(set(text)))  =>  "".join(dict.fromkeys(text))
    np.where(points < len(self._ids)  =>  np.where(points <= len(self._ids)
    b"".join(spelled).decode("utf-8", "replace")  =>  b"".join(spelled).decode("utf-8", "ignore")
    self.encoding.encode_ordinary(text)  =>  self.encoding.encode(text, allowed_special="all")
    tokenizer.encode_special_tokens = True  =>  tokenizer.encode_special_tokens = False
    self.vocab_size = max(vocab.values()) + 1  =>  self.vocab_size = len(vocab)
    add_special_tokens=False).ids  =>  add_special_tokens=True).ids
    candidates.index(min(candidates))  =>  candidates.index(max(candidates))
    "lstrip": False, "rstrip": False, "normalized": False  =>  "lstrip": True, "rstrip": False, "normalized": False
nanogpt/data/tokens.py
    tokens[:, 1:]  =>  tokens[:, :-1]
    (len(self.tokens) - 1) // self.block_size  =>  len(self.tokens) // self.block_size
    [seed], dtype=np.uint64)) ^ np.uint64(epoch))  =>  [seed], dtype=np.uint64)))
    np.array([seed], dtype=np.uint64)) ^  =>  np.array([0], dtype=np.uint64)) ^
    np.where(window == n - 1, last  =>  np.where(window == n, last
    (b * processes + process) * batch_size  =>  b * processes * batch_size
    < repeated[:, None]] = -1  =>  < repeated[:, None]] = 0
    n = -(-(len(self.tokens) - 1) // T)  =>  n = (len(self.tokens) - 1) // T
    newbyteorder("<")  =>  newbyteorder(">")
    expected < block_size + 1:  =>  expected <= block_size + 1:
    if largest >= vocab_size:  =>  if largest > vocab_size:
    counts["bytes"] / counts["tokens"]  =>  counts["tokens"] / counts["bytes"]
    max(start - first, 0)  =>  start - first
    p.stat().st_mtime_ns > meta.stat().st_mtime_ns  =>  p.stat().st_mtime_ns < meta.stat().st_mtime_ns
nanogpt/data/mixture.py
    share / sum(shares.values())  =>  share
    part.starts(seed + k, numbers)  =>  part.starts(seed, numbers)
    self.offsets[k] + part.starts  =>  part.starts
    (np.arange(q) + 0.5) / q  =>  np.arange(q) / q
    period[here] * self.quotas[k]  =>  period[here] * PERIOD
    check_same(first, other)  =>  check_same(first, first)
nanogpt/data/pickles.py
    weights_only=True)  =>  weights_only=False)
    raise RefusedError(f"it asks for {module}.{name}, and nothing but plain values is admitted")
        =>  return super().find_class(module, name)
    or set(itos) != set(range(len(itos)))  =>
nanogpt/data/check.py
    np.isin(hashes["val"], hashes["train"])  =>  np.isin(hashes["train"], hashes["val"])
    np.diff([-1, *ends, len(ids)])  =>  np.diff([-1, *ends])
    train["tokens"] < parameters:  =>  train["tokens"] > parameters:
nanogpt/checkpoint.py
    if old.resolve() not in linked:  =>  if True:
    found[:-keep] if keep  =>  found[keep:] if keep
    zlib.crc32(block, checksum)  =>  zlib.crc32(block)
    sync(temporary / STATE)  =>  pass
    sync(temporary)  =>  pass
    sync(out_dir)  =>  pass
    on_host.clone() if copy and  =>  on_host if copy and
    sorted(found, key=number)  =>  sorted(found)
    tuple[str, ...] = ("best", "last")  =>  tuple[str, ...] = ("last", "best")
    step for step in reversed(steps(run))  =>  step for step in steps(run)
    for path in (new, old) if  =>  for path in (old, new) if
    .to(device=device, dtype=dtype).eval()  =>  .to(device=device, dtype=dtype)
nanogpt/metrics.py
    if line["step"] <= step]  =>  if line["step"] < step]
    open(path, "ab", buffering=0)  =>  open(path, "wb", buffering=0)
    setdefault("WANDB_MODE", "offline")  =>  setdefault("WANDB_MODE", "online")
    self.accelerator.log_with, self.accelerator.trackers = [], []  =>  pass
    html.escape(text)  =>  text
    redirect_stdout(io.StringIO())  =>  suppress()
nanogpt/generate.py
    context = unread = context[:, -max(1, block_size // 2) :]  =>  context = unread = context[:, : block_size // 2]
    logits / temperature  =>  logits * temperature
    cache.length = 0  =>  pass
    probs.cumsum(-1) - probs > top_p  =>  probs.cumsum(-1) > top_p
    logits < kth  =>  logits <= kth
    torch.multinomial(probs, 1, generator=generator)  =>  torch.multinomial(probs, 1)
    model.train(training)  =>  model.train()
    model.train()  =>  pass
    previous, pending = pending, []  =>  previous, pending = [], []
nanogpt/evaluate.py
    reduction="sum"  =>  reduction="mean"
    model.eval()  =>  pass
    (y != -1).sum().item()  =>  y.numel()
    / math.log(2) / data.bytes_per_token  =>  / math.log(2) * data.bytes_per_token
    model.train(training)  =>  model.train()
    range(process, -(-eval_iters  =>  range(0, -(-eval_iters
    data.block_size), process, processes)  =>  data.block_size), 0, processes)
    y if i < eval_iters else  =>  y if i <= eval_iters else
    data.batch(seed, i * batch_size, batch_size)  =>  data.batch(seed, i, batch_size)
nanogpt/cpu.py
    vecdot(by_weight, weight).div_(x.size(-1))  =>  vecdot(by_weight, weight)
    grad_x = onednn_product(grad, weight.t())  =>  grad_x = onednn_product(grad, weight.t()) * 2
    rows.sum(0) if ctx.needs_input_grad[2] else None  =>  None
    F.scaled_dot_product_attention(q.float(), k.float(), v.float(), *args, **options)
        =>  F.scaled_dot_product_attention(q, k, v, *args, **options)
    if type(module) is nn.Linear:  =>  if isinstance(module, nn.Linear):
    if model.wte.weight.device.type == "cpu":  =>  if True:
    libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  =>  pass
    small = model.get_num_params() < smallest  =>  small = False
nanogpt/runtime/device.py
    GradientAccumulationPlugin(accumulation // world  =>  GradientAccumulationPlugin(accumulation
    wanted or max(1, cores // processes_here)  =>  wanted or cores
    free = min(free, limit - used)  =>  free = min(free, limit)
    peak * 1e12  =>  peak * 1e9
    return device == "cpu" or os.environ  =>  return device == "cpu" and os.environ
    if launcher != "no":  =>  if launcher == "no":
    torch.use_deterministic_algorithms(True)  =>  torch.use_deterministic_algorithms(False)
    timedelta(seconds=config.timeout)  =>  timedelta(minutes=config.timeout)
nanogpt/runtime/processes.py
    torch.distributed.ReduceOp.MAX  =>  torch.distributed.ReduceOp.MIN
    before_exit()  =>  pass
    os._exit(1)  =>  os._exit(0)
nanogpt/runtime/saver.py
    if not background:  =>  if background:
    self.failed, self.unsaved = 0, None  =>  self.unsaved = None
    self.failed += 1  =>  self.failed = 1
    self.thread.join()  =>  pass
    self.error = None  =>  pass
nanogpt/runtime/guard.py
    torch.where(loss.isfinite(), 1.0, torch.nan)  =>  torch.where(loss.isfinite(), 1.0, 0.0)
    config.gradient_accumulation_steps * parts  =>  config.gradient_accumulation_steps * 2
    SCALER_STEPS if scaler is not None else 0  =>  SCALER_STEPS
nanogpt/runtime/guard.py tests/test_train.py
    torch.where(not_finite > 0, 0.0, loss)  =>  loss
    (self.bad_in_a_row + 1) * not_finite  =>  self.bad_in_a_row + not_finite
nanogpt/train.py tests/runtime/test_guard.py
    self.gpt.zero_grad()  =>  pass
nanogpt/setup.py tests/test_train.py
    open_data(data, "val", model_config  =>  open_data(data, "train", model_config
    config.gradient_accumulation_steps * config.batch_size * model  =>  config.batch_size * model
    torch.manual_seed(config.seed)  =>  pass
    checkpoint.restore(start, self.gpt, self.optimizers)  =>  checkpoint.restore(start, self.gpt, [])
nanogpt/runtime/signals.py
    60 * max_minutes  =>  max_minutes
    signal.signal(each, signal.SIG_DFL)  =>  signal.signal(each, signal.SIG_IGN)
    max(self.longest, now - self.last), now  =>  now - self.last, now
    now + self.longest + saving > self.end  =>  now + self.longest > self.end
    failed_saves >= self.max_failed_saves  =>  failed_saves > self.max_failed_saves
    signal.signal(number, handler)  =>  pass
nanogpt/view/alerts.py
    values[best + 1 :].min()  =>  values[best:].min()
    np.diff(skipped, prepend=0)  =>  np.diff(skipped)
    values[:-evaluations].min()  =>  values[:evaluations].min()
    if medians[-1] < medians[lowest] + rise:  =>  if values[-1] < medians[lowest] + rise:
nanogpt/view/follow.py
    kept[10 - MOST_SAMPLES :]  =>  kept[-MOST_SAMPLES:]
    starts + padded.argmax(axis=1)  =>  starts + padded.argmin(axis=1)
    whole[: whole.rfind(b"\n") + 1]  =>  whole
    "training" if age < 60  =>  "training" if age > 60
    np.searchsorted(xs, low) - 1  =>  np.searchsorted(xs, low)
nanogpt/view/dashboard.py
    (("127.0.0.1", wish)  =>  (("0.0.0.0", wish)
    if host not in (  =>  if host in (
nanogpt/view/plot.py
    down = (top - both[:, 1])  =>  down = (both[:, 1] - bottom)
    (line["tokens"], line[key])  =>  (line["step"], line[key])
nanogpt/view/compare.py
    curve.points[:, axis] <= x  =>  curve.points[:, axis] < x
    {"seed", "eval_iters"}  =>  {"eval_iters"}
    statistics.stdev(  =>  statistics.pstdev(
    max(curves, key=lambda c: c.points[0, axis])  =>  min(curves, key=lambda c: c.points[0, axis])
nanogpt/hub/weights.py
    value = value[: c.vocab_size]  =>  pass
    ["mlp.gate_proj", "mlp.up_proj"]  =>  ["mlp.up_proj", "mlp.gate_proj"]
    "norm_eps": c.rms_norm_eps, "rope_theta": rope["rope_theta"]}  =>  "norm_eps": c.rms_norm_eps}
    "gelu_tanh": "gelu_new"  =>  "gelu_tanh": "gelu"
    GELUS[c.mlp], "layer_norm_epsilon": c.norm_eps}  =>  GELUS[c.mlp]}
nanogpt/hub/export.py
    (off <= 0).all()  =>  (off <= 0).any()
    if ours_ids != their_ids or  =>  if ours_ids != their_ids and
    shutil.rmtree(unverified, ignore_errors=True)  =>  pass
    weights.to_transformers(model, words.eot_id)  =>  weights.to_transformers(model)
nanogpt/hub/export.py tests/commands/test_commands.py
    client.make_repository(repo, private, revision)  =>  client.make_repository(repo, revision=revision)
    by nanogpt", revision)  =>  by nanogpt")
nanogpt/hub/card.py
    v != defaults.get(k)  =>  v == defaults.get(k)
    line["step"] == state["step"] and "val_loss" in line  =>  "val_loss" in line
nanogpt/hub/client.py
    create_repo(name, private=private  =>  create_repo(name, private=False
    revision=revision, allow_patterns=list(WANTED)  =>  allow_patterns=list(WANTED)
    api.auth_check(name, write=True)  =>  api.auth_check(name)
nanogpt/hub/load.py tests/test_train.py
    min(wanted.block_size, model.config.block_size)  =>  model.config.block_size
    ours.encode(text), theirs.encode(text)  =>  ours.encode(text), ours.encode(text)
    {"dropout": wanted.dropout, "gradient  =>  {"gradient
nanogpt/hub/from_nanogpt.py
    step * train.gradient_accumulation_steps * train.batch_size  =>  step * train.batch_size
    ("beta1", "beta2"), group["betas"]  =>  ("beta2", "beta1"), group["betas"]
    bool(args.get("bias", True))  =>  bool(args.get("bias", False))
    = 2 * step  =>  = step
nanogpt/train.py
    config.grad_clip or torch.inf  =>  torch.inf
    seed=config.seed + state["step"],  =>  seed=config.seed,
    = config.gradient_accumulation_steps // processes  =>  = config.gradient_accumulation_steps
    flops / peak / self.accelerator.num_processes  =>  flops / peak
    reduce(tally.loss, "mean")  =>  reduce(tally.loss, "sum")
    process=accelerator.process_index,  =>  process=0,
    reduce=self.add_up,  =>
    loss.detach() / micro_batches  =>  loss.detach()
    number * config.batch_size, config.batch_size  =>  number, config.batch_size
    step * config.gradient_accumulation_steps + index  =>  step + index
    result["val_loss"] < state["best_val_loss"]  =>  result["val_loss"] > state["best_val_loss"]
    eval_iters=0 if last else config.eval_iters  =>  eval_iters=config.eval_iters
    state["skipped_steps"] += int(self.tally.skipped)  =>  pass
    ^ np.uint64(number))[0]  =>  ^ np.uint64(step))[0]
    lr_at(state["step"], config))  =>  lr_at(state["step"] + 1, config))
    128 + number if number else 0  =>  number
    (config.always_save_checkpoint or best or last)  =>  (config.always_save_checkpoint or last)
    i * accelerator.num_processes + accelerator.process_index  =>  i * accelerator.num_processes
nanogpt/resume.py
    if a != b and name not in HARMLESS:  =>  if a != b and name in HARMLESS:
    ("best",) if wish == "best" else ("last",)  =>  ("last",)
    fixed = old is model and  =>  fixed = old is train and
    data init_from max_iters lr_decay_iters  =>  data init_from beta2 max_iters lr_decay_iters
nanogpt/console.py
    c.max_iters * run.tokens_per_step / len  =>  c.max_iters / len
    next(given, None)  =>  pass
    {2 * state['step']}  =>  {state['step']}
    shlex.quote(prompt)  =>  prompt
nanogpt/plan.py
    each = 2 if isinstance  =>  each = 1 if isinstance
    = train.gradient_accumulation_steps * train.batch_size  =>  = train.batch_size
    -(-config.eval_iters // processes)  =>  config.eval_iters
    sum(needed.values()) < room  =>  sum(needed.values()) > room
    max(fastest, (speed, size))  =>  min(fastest, (speed, size))
nanogpt/commands/sample.py tests/commands/test_commands.py
    "top_k": args.top_k,  =>
    "seed": args.seed}  =>  "seed": None}
nanogpt/commands/evaluate.py tests/commands/test_commands.py
    open_data(directory, args.split, model  =>  open_data(directory, "val", model
    known | {what: results}  =>  {what: results}
    args.split if directory == own else  =>  args.split if directory != own else
nanogpt/commands/show_batch.py tests/commands/test_commands.py
    (args.step - 1) *  =>  args.step *
    args.data or trained.data  =>  trained.data
nanogpt/commands/options.py tests/commands/test_commands.py
    "license": args.license}  =>  "license": "unknown"}
    "dtype": getattr(torch, args.dtype)  =>  "dtype": torch.float32
nanogpt/commands/push.py tests/commands/test_commands.py
    private=args.private  =>  private=False
nanogpt/commands/bench.py
    if round:  =>  if True:
    amount / median  =>  median / amount
    base / median  =>  median / base
nanogpt/commands/playground.py
    max(0, done - 1 - block_size // 2)  =>  max(0, done - block_size // 2)
    return html.escape(text)  =>  return text
    "share": False  =>  "share": True
nanogpt/commands/tasks.py
    if words.eot_id is not None:  =>  if words.eot_id:
data_prep/writer.py
    tokenizer.vocab_size <= 65536 else  =>  tokenizer.vocab_size <= 65537 else
    int(len(text) * (1 - val_fraction))  =>  int(len(text) * val_fraction)
    len(part.encode("utf-8"))  =>  len(part)
    max(self.counts["largest"], int(ids.max(initial=0)))  =>  int(ids.max(initial=0))
    self.digest.update(data)  =>  pass
    os.fsync(self.file.fileno())  =>  pass
    file.seek(8 * self.state["hashes"])  =>  file.seek(self.state["hashes"])
data_prep/documents.py
    block = block.removeprefix(codecs.BOM_UTF8)  =>  pass
    piece[:3] >= (file, document, passage)  =>  piece[:3] > (file, document, passage)
    return end + 1  =>  return end
    "\t" if bare(name).endswith(".tsv") else ","  =>  ","
    index=i - 1, contiguous=True  =>  index=i - 1, contiguous=False
data_prep/inputs.py
    if (status.st_dev, status.st_ino) not in seen:  =>  if file not in found:
data_prep/split.py
    piece.digest < self.val_fraction * 2**64  =>  piece.digest < self.val_fraction * 2**63
    {str(by_length[0]): "val"}  =>  {str(by_length[1]): "val"}
    {"several": several}  =>  {"several": False}
data_prep/text.py
    not 1 <= int(match[1]) <= int(match[2])  =>  not 0 <= int(match[1]) <= int(match[2])
    train["bytes"] + val["bytes"]  =>  train["bytes"]
data_prep/train_tokenizer.py
    vocab_size=vocab_size - 1  =>  vocab_size=vocab_size
    ByteLevel(add_prefix_space=False)  =>  ByteLevel(add_prefix_space=True)
data_prep/merge.py
    max(c["largest"] for c in counts)  =>  counts[0]["largest"]
    own.update(block)  =>  pass
    if (out / path.name).exists():  =>  if False:
data_prep/from_datatrove.py
    sum(counts[first_val:]) < val_fraction  =>  sum(counts[:first_val]) < val_fraction
    if largest >= words.vocab_size:  =>  if largest > words.vocab_size:
data_prep/shakespeare.py
    if found != sha256:  =>  if not found:
    text, tokenizer, val_fraction, origin)  =>  text, tokenizer, 0.1, origin)
data_prep/python_stdlib.py
    if not LEFT_OUT.intersection(name.parts):  =>  if name.name not in LEFT_OUT:
"""


class Mutation(NamedTuple):
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    why: str = ""  # no test notices it

    def __str__(self) -> str:
        return f"{self.file}: {self.old}  =>  {self.new}"


def read_table(table: str = TABLE) -> list[Mutation]:
    """The changes, in their order."""
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
