"""Reinforcement learning with TRL: a chat model learns to add from rewards for correct digits.

    pip install -e '.[trl]' -c constraints.txt
    python recipes/chat.py
    nanogpt export out/chat --to exports/chat
    python recipes/grpo.py exports/chat --to exports/grpo

GRPO (Shao et al. 2024) samples several answers to each question, and makes those that earn more
than the mean of their group more likely. It never asks the questions that are held out to validate
the chat model. Ten minutes on two CPU cores took a chat model of 600 steps from 12% to 45% correct
answers to held-out sums (docs/trl.md).
"""

import random
import warnings
from argparse import ArgumentParser
from pathlib import Path

from data_prep import chat_tasks
from nanogpt.run.errors import user_errors

PROMPTS, ANSWERS = 32, 16  # different questions in a step, and answers to each
DIGITS = 5  # the longest answer in tokens; a correct one has three digits and an end at most


def ask(data: Path | str, count: int, seed: int = 1) -> list[dict]:
    """Prompts for sums that are not held out; `answer` is the correct one."""
    held_out = {m["content"] for messages in chat_tasks.held_out(data) for m in messages}
    rng = random.Random(seed)
    rows: list[dict] = []
    while len(rows) < count:
        question, answer = chat_tasks.sums(rng)
        if question not in held_out:
            rows.append({"prompt": [{"role": "user", "content": question}], "answer": answer})
    return rows


def reward(completions: list[list[dict]], answer: list[str], **columns) -> list[float]:
    """The share of correct digits in each completion; 0 if it has too many or too few."""
    rewards = []
    for completion, right in zip(completions, answer, strict=True):
        said = completion[0]["content"]
        same = sum(a == b for a, b in zip(said, right, strict=False))
        rewards.append(same / len(right) if len(said) == len(right) else 0.0)
    return rewards


def train(model: str, to: str, data: str, steps: int, learning_rate: float = 3e-4) -> None:
    """Trains an export `model`, and writes the result to `to`, where transformers can load it."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    warnings.simplefilter("ignore", FutureWarning)  # of TRL's use of transformers
    config = GRPOConfig(
        output_dir=to,
        max_steps=steps,
        per_device_train_batch_size=PROMPTS * ANSWERS,
        num_generations=ANSWERS,
        max_completion_length=DIGITS,
        learning_rate=learning_rate,
        scale_rewards="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        report_to="none",
    )
    trainer = GRPOTrainer(
        model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(ask(data, PROMPTS * steps)),
    )
    trainer.train()
    trainer.save_model(to)


if __name__ == "__main__":
    parser = ArgumentParser(description="Trains a chat model to add, with GRPO.")
    parser.add_argument("model", help="an export of a chat model")
    parser.add_argument("--to", required=True, metavar="DIR", help="where the result is written")
    parser.add_argument("--data", default="data/chat_tasks", metavar="DIR", help="the model's data")
    parser.add_argument("--steps", type=int, default=500, help="default: 500")
    args = parser.parse_args()
    with user_errors("stopped"):
        if Path(args.to).exists():
            raise ValueError(f"{args.to} exists: name a new directory with --to")
        train(args.model, args.to, args.data, args.steps)
