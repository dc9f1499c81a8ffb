"""The same runs by one process and by two, without a launcher: `python pair.py '[{"name": "a", "max_iters": 4}]'`.

Every process is a fork of this one, which has everything imported and has not computed anything, so this takes a few
seconds. The run `name` goes to out/name-one and to out/name-two. `room` is as in runs.py; `terminate` is the step at
whose evaluation the last process alone gets a SIGTERM. Prints the exit codes: of both processes, of the one alone.
"""

import json
import os
import signal
import socket
import sys
import traceback

import torch._dynamo  # noqa: F401 (which making an optimizer imports: a second that each process would spend again)
from runs import MODEL, TRAIN, troubled

from nanogpt import TrainConfig
from nanogpt.train import Run


def train(processes: str, settings: list[dict]) -> None:
    for flags in settings:
        out_dir = f"out/{flags.pop('name')}-{processes}"
        room, step = flags.pop("room", 99), flags.pop("terminate", None)
        run = Run(MODEL, TrainConfig(**TRAIN | flags | {"threads": 1, "out_dir": out_dir}))
        terminate_itself(troubled(run, [], room), step).train()


def terminate_itself(run: Run, step: int | None) -> Run:
    """`run`, whose last process gets a SIGTERM before the first batch of the evaluation at `step`."""
    whole_split = run.val_data.whole_split

    def batches(*args):
        for number, batch in enumerate(whole_split(*args)):
            if number == 0 and step == run.state["step"] and run.accelerator.is_last_process:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    run.val_data.whole_split = batches
    return run


def fork(processes: str, settings: list[dict], **environment: str) -> int:
    """Starts a process; returns its id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.environ.update(environment)
        train(processes, settings)
        code = 0
    except SystemExit as exit:
        code = exit.code
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def main(settings: list[dict]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    processes = [fork("two", settings, RANK=rank, LOCAL_RANK=rank, **shared) for rank in "01"]
    processes.append(fork("one", settings))
    print("exit codes", *(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in processes))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
