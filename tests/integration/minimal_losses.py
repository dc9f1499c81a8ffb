"""The losses of recipes/minimal.py with the model and the settings of runs.py, as JSON into the file named.

python tests/integration/minimal_losses.py losses.json '{"max_iters": 50}'
"""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import runs
from accelerate import Accelerator

from nanogpt import TrainConfig

if __name__ == "__main__":
    minimal = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "minimal.py"))
    config = TrainConfig(**runs.TRAIN | json.loads(sys.argv[2]))
    accelerator = Accelerator(cpu=True)
    losses = [loss.item() for _, loss in minimal["train"](replace(runs.MODEL, dropout=0.0), config, accelerator)]
    if accelerator.is_main_process:
        Path(sys.argv[1]).write_text(json.dumps(losses))
