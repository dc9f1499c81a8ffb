"""Trains a small model on the text and on the predictions of larger ones (Hinton et al. 2015).

    python recipes/shakespeare_best.py                          # a teacher
    python recipes/distill.py --teacher=out/shakespeare_best    # a student of a quarter of its size

Several teachers, separated by commas, are averaged. They must have the student's tokenizer, and at
least its context. The loss is (1 - weight) times that of the text plus weight times the
cross-entropy with the teachers' probabilities; evaluations measure only that of the text. Every
command loads the result as a plain GPT.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from shakespeare import SHORT

import nanogpt
from data_prep import shakespeare
from nanogpt import GPT, GPTConfig
from nanogpt.run.errors import user_errors
from nanogpt.run.flags import parse, settings_parser
from nanogpt.train import main

SMALL = GPTConfig.modern(
    block_size=64, n_layer=2, n_head=2, n_embd=96, n_inner=256, tie_embeddings=False
)
TRAIN = replace(SHORT, out_dir="out/distill", batch_size=32)


class Student(GPT):
    """A GPT that also learns from `teach`: probabilities (B, T, V) for tokens (B, T)."""

    teach: Callable[[torch.Tensor], torch.Tensor]
    weight = 0.5

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None, **options):
        """As in GPT; with targets (B, T) while training, the loss is the mixture."""
        if targets is None or not self.training:
            return super().forward(idx, targets, **options)
        counted = targets != -1  # of N positions
        logits = super().forward(idx)[counted].float()  # (N, V)
        text = F.cross_entropy(logits / self.config.train_temperature, targets[counted])
        soft = F.cross_entropy(logits, self.teach(idx)[counted])
        return (1 - self.weight) * text + self.weight * soft


@torch.no_grad()
def mean_probabilities(models: list[GPT], idx: torch.Tensor) -> torch.Tensor:
    """What models predict after each of the tokens idx (B, T), in the mean: (B, T, V) in fp32."""
    each = [model.to(idx.device)(idx).float().softmax(-1) for model in models]
    return torch.stack(each).mean(0)


if __name__ == "__main__":
    parser = settings_parser(SMALL, TRAIN)
    parser.add_argument("--teacher", default="out/shakespeare_best", help="runs, with commas")
    given = vars(parser.parse_args())
    teacher = given.pop("teacher")
    flags = [f"--{name}={value}" for name, value in given.items()]
    with user_errors():
        context = parse(SMALL, TRAIN, flags)[0].block_size
        teachers = [nanogpt.load(run)[0] for run in teacher.split(",")]
        if any(model.config.block_size < context for model in teachers):
            raise ValueError(f"a teacher's context is shorter than block_size={context}")
    Student.teach = staticmethod(partial(mean_probabilities, teachers))
    main(SMALL, TRAIN, prepare=shakespeare.prepare, argv=flags, make_model=Student)
