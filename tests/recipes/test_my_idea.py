"""recipes/my_idea.py: the changed block and loss are those that it describes."""

import my_idea
import torch
import torch.nn.functional as F
from helpers import randomize

from nanogpt import GPT, GPTConfig

CONFIG = GPTConfig.modern(vocab_size=65, block_size=8, n_layer=2, n_head=1, n_embd=16, n_inner=32)


def test_the_block_and_the_loss_are_those_described():
    model = randomize(my_idea.Idea(CONFIG))
    x, y = torch.randint(65, (2, 2, 8))
    mlp = model.h[0].mlp
    states = torch.randn(2, 8, 16)
    torch.testing.assert_close(mlp(states), (states @ mlp.c_fc.weight.T).relu() ** 2 @ mlp.c_proj.weight.T)
    logits = model.eval()(x)
    text = F.cross_entropy(logits.flatten(0, 1), y.flatten())
    torch.testing.assert_close(model(x, y), text)
    z = logits.exp().sum(-1).log()
    torch.testing.assert_close(model.train()(x, y), text + 1e-4 * (z**2).mean())
    # two matrices of 48 channels in the place of three of 32
    assert mlp.c_fc.weight.shape == (48, 16) and model.get_num_params() == GPT(CONFIG).get_num_params()
