import pytest


@pytest.fixture
def run_dir(make_run, capsys):
    """The out directory of a run of ten steps, with checkpoints of two."""
    run = make_run(max_iters=10, eval_interval=5)
    run.train()
    capsys.readouterr()
    return run.out_dir
