"""Benchmark tasks, through EleutherAI's lm-evaluation-harness.

    pip install -e '.[eval]' -c constraints.txt

    nanogpt eval out/shakespeare --tasks lambada_openai,piqa
    nanogpt eval out/shakespeare --tasks mine --include_path tasks/

The model is converted to its transformers class in this process; results equal `lm_eval --model hf`
on its export.
"""

import importlib.util
import tempfile
from pathlib import Path

import torch

from nanogpt.hub import weights
from nanogpt.hub.export import special_tokens, write_tokenizer
from nanogpt.model import GPT
from nanogpt.sample import default_prompt


def evaluate(
    model: GPT,
    tokenizer,
    tasks: list[str],
    include_path: str | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, dict]:
    """Results by task, with lm_eval's names. `include_path` is a directory with custom task files.

    `limit` is the number of examples per task. Moves the model to the CPU. Raises ValueError if
    lm_eval or a task is missing, or if no transformers class supports the model.
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
        raise ValueError(
            f"unknown task {missing[0]!r}: `lm_eval ls tasks` lists all, --include_path adds others"
        )
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
        # precedes a text without context; HFLM's default is the end-of-text token, if there is one
        prefix_token_id=first_token(tokenizer),
    )
    with torch.no_grad():
        return lm_eval.simple_evaluate(lm, tasks=tasks, task_manager=manager, limit=limit)[
            "results"
        ]


def first_token(tokenizer) -> int:
    """The token before a text: end of text, else newline, else the first token."""
    return default_prompt(tokenizer)[1][0] if tokenizer.eot_id is None else tokenizer.eot_id
