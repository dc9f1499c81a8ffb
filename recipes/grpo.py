"""Reinforcement learning with TRL: a chat model learns to add from a reward for right answers.

    pip install -e '.[trl]'
    python recipes/chat.py                     # adds 9 % of two-digit numbers right
    nanogpt export out/chat --to exports/chat
    python recipes/grpo.py exports/chat --to exports/grpo
    python -m data_prep.chat_tasks --ask exports/grpo

GRPO (Shao et al. 2024) samples several answers to each question and makes those likelier that earn
more than the group's mean. The reward is computed: a third for each right digit from the right, so
only the rule of addition is needed, no written answers. The questions that validate the chat model
are never asked in training.
"""

import argparse
import random
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from data_prep import chat_tasks

QUESTIONS = 20_000


def questions(data: Path | str, seed: int = 1) -> Dataset:
    """Prompts with sums that are not held out; `answer` is the right one."""
    held_out = {m["content"] for messages in chat_tasks.held_out(data) for m in messages}
    rng = random.Random(seed)
    rows: list[dict] = []
    while len(rows) < QUESTIONS:
        question, answer = chat_tasks.sums(rng)
        if question not in held_out:
            rows.append({"prompt": [{"role": "user", "content": question}], "answer": answer})
    return Dataset.from_list(rows)


def reward(completions: list, answer: list[str], **columns) -> list[float]:
    """The share of right digits, counted from the last one; 0 for an answer of another length."""
    rewards = []
    for completion, right in zip(completions, answer, strict=True):
        said = completion[0]["content"]
        digits = [a == b for a, b in zip(said, right, strict=False)]
        rewards.append(sum(digits) / len(right) if len(said) == len(right) else 0.0)
    return rewards


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="an export of a chat model")
    parser.add_argument("--to", required=True, metavar="DIR", help="where the result is written")
    parser.add_argument("--data", default="data/chat_tasks", metavar="DIR")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--gens", type=int, default=16)
    parser.add_argument("--iters", type=int, default=1)
    args = parser.parse_args()
    config = GRPOConfig(
        output_dir=args.to,
        max_steps=args.steps,
        per_device_train_batch_size=args.prompts * args.gens,
        num_generations=args.gens,
        num_iterations=args.iters,
        max_completion_length=5,
        learning_rate=args.lr,
        lr_scheduler_type="linear",
        adam_beta2=0.99,
        beta=0.0,  # no pull towards the first model, so none is kept
        temperature=1.0,
        scale_rewards="none",
        use_cpu=True,
        bf16=False,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(args.model),
        reward_funcs=reward,
        args=config,
        train_dataset=questions(args.data),
        processing_class=AutoTokenizer.from_pretrained(args.model),
    )
    trainer.train()
    trainer.save_model(args.to)


if __name__ == "__main__":
    main()
