"""Trains a small model on the text and on the predictions of larger ones (Hinton et al. 2015).

    python recipes/shakespeare_best.py                          # a teacher
    python recipes/distill.py --teacher=out/shakespeare_best    # a student of a quarter of its size

Several teachers, separated by commas, are averaged. They must have the student's tokenizer, and at
least its context. The loss is (1 - WEIGHT) times that of the text plus WEIGHT times the
cross-entropy with the teachers' probabilities; evaluations measure only that of the text. Every
command loads the result as a plain GPT.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from shakespeare import SHORT

import nanogpt
from data_prep import shakespeare
from nanogpt import GPT, GPTConfig
from nanogpt.run.errors import user_errors
from nanogpt.run.flags import settings_parser
from nanogpt.train import main

WEIGHT = 0.5
SMALL = GPTConfig.modern(
    block_size=64, n_layer=2, n_head=2, n_embd=96, n_inner=256, tie_embeddings=False
)
TRAIN = replace(SHORT, out_dir="out/distill", batch_size=32)


class Student(GPT):
    """A GPT that learns from `teachers` while it trains. They are not part of it and not saved."""

    teachers: tuple[GPT, ...] = ()

    def __init__(self, config: GPTConfig, ops=None):
        super().__init__(config, ops)
        for teacher in self.teachers:
            c = teacher.config
            if c.vocab_size != config.vocab_size or c.block_size < config.block_size:
                raise ValueError(
                    f"a teacher has {c.vocab_size} tokens and a context of {c.block_size}, the "
                    f"student {config.vocab_size} and {config.block_size}: train one that fits"
                )

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None, **options):
        """As in GPT; with targets (B, T) while training, the loss is the mixture."""
        if targets is None or not self.training:
            return super().forward(idx, targets, **options)
        counted = targets != -1  # of N positions
        logits = super().forward(idx)[counted].float()  # (N, V)
        with torch.no_grad():
            each = [teacher.to(idx.device)(idx)[counted].float() for teacher in self.teachers]
            soft = torch.stack([x.softmax(-1) for x in each]).mean(0)  # (N, V)
        text = F.cross_entropy(logits / self.config.train_temperature, targets[counted])
        return (1 - WEIGHT) * text + WEIGHT * F.cross_entropy(logits, soft)


if __name__ == "__main__":
    parser = settings_parser(SMALL, TRAIN)
    parser.add_argument("--teacher", default="out/shakespeare_best", help="runs, with commas")
    given = vars(parser.parse_args())
    teacher = given.pop("teacher")
    with user_errors():
        Student.teachers = tuple(nanogpt.load(run)[0] for run in teacher.split(","))
    flags = [f"--{name}={value}" for name, value in given.items()]
    main(SMALL, TRAIN, prepare=shakespeare.prepare, argv=flags, make_model=Student)
