"""recipes/minimal.py is recipes/shakespeare.py without what a reader need not see."""

import runpy
from dataclasses import replace
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes"


def test_the_minimal_recipe_trains_the_laptop_model_of_the_main_one():
    minimal, main = (runpy.run_path(str(RECIPES / f"{name}.py")) for name in ("minimal", "shakespeare"))
    assert minimal["MODEL"] == main["LAPTOP"]
    laptop = {"batch_size": 32, "max_iters": 800}  # where there is a GPU, shakespeare.py has other settings
    laptop |= {"learning_rate": 0.01, "beta1": 0.8, "muon_momentum": 0.9, "weight_decay": 0.0}
    unused = {name: getattr(main["TRAIN"], name) for name in ("out_dir", "eval_interval")}
    assert replace(minimal["TRAIN"], **unused) == replace(main["TRAIN"], **laptop)
