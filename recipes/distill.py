"""Trains a small model on the text and on the predictions of larger ones (Hinton et al. 2015).

    python recipes/shakespeare_best.py                          # a teacher
    python recipes/distill.py --teacher=out/shakespeare_best    # a student a third of its size

Several teachers, separated by commas, are averaged. They must have the student's tokenizer and at
least its context. The loss is (1 - weight) times the cross-entropy with the text plus weight times
the cross-entropy with the teachers' probabilities; an evaluation measures only the first. Every
command loads the result as a plain GPT.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import nanogpt  # isort: skip (before torch: see nanogpt/run/startup.py)

import torch
import torch.nn.functional as F
from shakespeare import SHORT

from data_prep import shakespeare
from nanogpt import GPT, GPTConfig, TrainConfig
from nanogpt.data.files import local_copy
from nanogpt.hub.load import check_tokenizer
from nanogpt.run.errors import user_errors
from nanogpt.run.flags import parse
from nanogpt.text.directories import read_shares
from nanogpt.text.tokenizer import load_tokenizer
from nanogpt.train import main

SMALL = GPTConfig.modern(
    block_size=64, n_layer=2, n_head=2, n_embd=96, n_inner=256, tie_embeddings=False
)


@dataclass
class DistillConfig(TrainConfig):
    teacher: str = "out/shakespeare_best"  # runs, comma-separated


TRAIN = DistillConfig(**vars(SHORT) | {"out_dir": "out/distill", "batch_size": 32})


class Student(GPT):
    """A GPT that also learns from `teach`: probabilities (B, T, V) for tokens (B, T)."""

    teach: Callable[[torch.Tensor], torch.Tensor]
    weight = 0.5

    def __init__(self, config: GPTConfig, ops=None):
        super().__init__(config, ops)
        if config.separator is not None:  # teachers attend to the whole window
            raise ValueError("a student has no separator: leave --separator out")

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None, **options):
        """As in GPT, but while training with targets (B, T) the loss is the mixture."""
        if targets is None or not self.training:
            return super().forward(idx, targets, **options)
        counted = targets != -1  # of N positions
        logits = super().forward(idx)[counted].float()  # (N, V)
        text = F.cross_entropy(logits / self.config.train_temperature, targets[counted])
        soft = F.cross_entropy(logits, self.teach(idx)[counted])
        return (1 - self.weight) * text + self.weight * soft


@torch.no_grad()
def mean_probabilities(models: list[GPT], idx: torch.Tensor) -> torch.Tensor:
    """The mean of models' probabilities after each of the tokens idx (B, T): (B, T, V) in fp32."""
    each = [model.to(idx.device)(idx).float().softmax(-1) for model in models]
    return torch.stack(each).mean(0)


if __name__ == "__main__":
    with user_errors():
        model, asked, *_ = parse(SMALL, TRAIN)
        teachers = []
        for run in asked.teacher.split(","):
            teacher, tokenizer = nanogpt.load(os.path.expanduser(run))
            if teacher.config.block_size < model.block_size:
                why = f"its context is below block_size={model.block_size}"
                raise ValueError(f"{run}: {why}; lower --block_size")
            data = local_copy(next(iter(read_shares(asked.data))))  # a mixture has one tokenizer
            if (data / "train.bin").is_file():
                check_tokenizer(tokenizer, load_tokenizer(data), asked.data, run, exact=True)
            teachers.append(teacher)
    Student.teach = staticmethod(partial(mean_probabilities, teachers))
    main(SMALL, TRAIN, prepare=shakespeare.prepare, make_model=Student)
