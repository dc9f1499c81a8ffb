"""Benchmark tasks, through EleutherAI's lm-evaluation-harness (`pip install -e '.[eval]' -c constraints.txt`).

    nanogpt eval out/shakespeare --tasks lambada_openai,piqa
    nanogpt eval out/shakespeare --tasks mine --include_path tasks/

A model goes in as transformers' class, in this process, so the figures are those of `lm_eval --model hf` on its export.
"""

import importlib.util
import tempfile
from pathlib import Path

import torch

from nanogpt.hub import weights
from nanogpt.hub.export import special_tokens, write_tokenizer
from nanogpt.model import GPT


def evaluate(
    model: GPT,
    tokenizer,
    tasks: list[str],
    include_path: str | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, dict]:
    """Results by task, as lm_eval names them. `include_path` is a directory with task files of one's own.

    `limit` takes the first so many examples of each task. The model is moved to the CPU, and left there. Raises
    ValueError where lm_eval or a task is missing, or where no transformers class can hold the model.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("--tasks needs lm_eval: pip install -e '.[eval]' -c constraints.txt")
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    manager = TaskManager(include_path=include_path)
    missing = [name for name in tasks if name not in manager.all_tasks]
    if missing:
        raise ValueError(f"there is no task {missing[0]!r}: `lm_eval ls tasks` lists them, --include_path adds others")
    device = model.wte.weight.device
    with tempfile.TemporaryDirectory() as directory:
        special = special_tokens(tokenizer, model.config.vocab_size)
        write_tokenizer(Path(directory), tokenizer, model.config.block_size, special)
        hf_tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    native = weights.to_transformers(model.cpu(), tokenizer.eot_id).to(device)
    lm = HFLM(
        pretrained=native,
        tokenizer=hf_tokenizer,
        batch_size=batch_size,
        max_length=model.config.block_size,
        # what a text without a context is read after; a tokenizer without an end-of-text token has none of its own
        prefix_token_id=first_token(tokenizer),
    )
    with torch.no_grad():
        return lm_eval.simple_evaluate(lm, tasks=tasks, task_manager=manager, limit=limit)["results"]


def first_token(tokenizer) -> int:
    """The token that stands before a text: end of text, else the newline, else the first of the vocabulary."""
    if tokenizer.eot_id is not None:
        return tokenizer.eot_id
    try:
        return int(tokenizer.encode("\n")[0])
    except ValueError:  # a character level vocabulary without it
        return 0
