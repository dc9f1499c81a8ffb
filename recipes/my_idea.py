"""A template for your own idea: recipes/shakespeare.py with a different block and a different loss.

    python recipes/my_idea.py --max_iters=400 --seeds=3 --out_dir=out/idea
    python recipes/shakespeare.py --max_iters=400 --seeds=3 --out_dir=out/plain
    nanogpt compare out/plain-seed* out/idea-seed*
    nanogpt sample out/idea-seed1337 --trust_recipe recipes/my_idea.py

The two changes here are known ones: an MLP with squared ReLU (So et al. 2021) in place of SwiGLU,
and a z-loss (Chowdhery et al. 2022), which keeps the logits small. Replace them with yours, in a
copy in this folder: it imports shakespeare.py. To pretrain with them:
`pretrain.run(make_model=Idea)`. A model whose parameters are not GPT's, such as this one, cannot be
exported.
"""

from dataclasses import replace

from nanogpt import GPT, GPTConfig  # isort: skip (before torch: see nanogpt/run/startup.py)

import torch
import torch.nn.functional as F
from shakespeare import MODEL, TRAIN

from data_prep import shakespeare
from nanogpt.model import MLP
from nanogpt.train import main

Z_LOSS = 1e-4


class SquaredReLU(MLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) to (B, T, C)."""
        return self.c_proj(F.relu(self.c_fc(x)).square())


class Idea(GPT):
    def __init__(self, config: GPTConfig, ops=None):
        super().__init__(config, ops)
        # as many parameters as the three matrices of SwiGLU
        two_matrices = replace(config, mlp="gelu", n_inner=config.inner * 3 // 2)
        for block in self.h:
            block.mlp = SquaredReLU(two_matrices)
        self.apply(self._init_weights)

    def loss(self, x: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
        """GPT's loss of the final states x (B, T, C), and while training the z-loss, too."""
        loss = super().loss(x, targets, reduction)
        if not self.training:
            return loss
        logits = F.linear(x, self.head.weight)[..., : self.config.vocab_size].float()
        return loss + Z_LOSS * logits.logsumexp(-1).square().mean()


if __name__ == "__main__":
    train = replace(TRAIN, out_dir="out/my_idea")
    main(MODEL, train, prepare=shakespeare.prepare, make_model=Idea)
