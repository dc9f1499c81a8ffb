"""The same runs by one process and by two, without a launcher: `python pair.py '[{"name": "a", "max_iters": 4}]'`.

Every process is a fork of this one, which has everything imported and has not computed anything, so this takes a few
seconds. The run `name` goes to out/name-one and to out/name-two; with `--fsdp` two more processes, which share a model
as in runs.py, write out/name-fsdp. `room` is as in runs.py; `terminate` is the step at whose evaluation the last
process alone gets a SIGTERM; `model` are changes of the model. Prints the exit codes: of both processes, of those that
share a model, of the one alone.
"""

import json
import os
import signal
import socket
import sys
import traceback
from dataclasses import replace

import torch._dynamo  # noqa: F401 (which making an optimizer imports: a second that each process would spend again)
from runs import MODEL, TRAIN, check_shards, sharded, trouble

from nanogpt import TrainConfig
from nanogpt.run import device
from nanogpt.run.errors import user_errors
from nanogpt.run.main import train_to_the_end
from nanogpt.run.prepare import prepare
from nanogpt.train import Parts, State


def train(processes: str, settings: list[dict]) -> None:
    if processes == "fsdp":
        device.Accelerator = sharded
    for flags in settings:
        out_dir = f"out/{flags.pop('name')}-{processes}"
        room, step, model = flags.pop("room", 99), flags.pop("terminate", None), flags.pop("model", {})
        with user_errors():
            settings = TrainConfig(**TRAIN | flags | {"threads": 1, "out_dir": out_dir})
            config, parts, state = prepare(replace(MODEL, **model), settings)
        if processes == "fsdp":
            check_shards(parts)
        trouble(parts, state, [], room)
        terminate_itself(parts, state, step)
        train_to_the_end(config, parts, state)


def terminate_itself(parts: Parts, state: State, step: int | None) -> None:
    """The last process gets a SIGTERM before the first batch of the evaluation at `step`."""
    whole_split = parts.val_data.whole_split

    def batches(*args):
        for number, batch in enumerate(whole_split(*args)):
            if number == 0 and step == state.step and parts.accelerator.is_last_process:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    parts.val_data.whole_split = batches


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


def fork_two(processes: str, settings: list[dict]) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    return [fork(processes, settings, RANK=rank, LOCAL_RANK=rank, **shared) for rank in "01"]


def main(settings: list[dict], fsdp: bool) -> None:
    processes = [pid for name in ["two", "fsdp"][: 1 + fsdp] for pid in fork_two(name, settings)]
    processes.append(fork("one", settings))
    print("exit codes", *(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in processes))


if __name__ == "__main__":
    main(json.loads(sys.argv[-1]), "--fsdp" in sys.argv)
