"""Processes agree on values, on mistakes and on who died. Real ones are in integration/test_interruptions.py."""

import os
from types import SimpleNamespace

import pytest
import torch

from nanogpt.run.agree import MESSAGE, Peers, lost


def process(rank: int = 0, of: int = 1) -> SimpleNamespace:
    """An accelerator of one of several processes."""
    return SimpleNamespace(num_processes=of, process_index=rank, is_main_process=rank == 0, device=torch.device("cpu"))


@pytest.mark.parametrize(
    "error, words",
    [
        ("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3", "has died"),
        ("Timed out waiting 4000ms for recv operation to complete", "not answered for 4 s"),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_what_errors_say_about_other_processes(error, words):
    said = lost(error, 4)
    assert said is None if words is None else words in said


def test_errors_of_a_process_alone_pass_through():
    with pytest.raises(RuntimeError, match="Timed out"), Peers(process(), 1).watched():
        raise RuntimeError("Timed out")


def test_processes_agree_on_the_largest(monkeypatch):
    largest_of = {torch.distributed.ReduceOp.MAX: torch.maximum, torch.distributed.ReduceOp.MIN: torch.minimum}

    def with_another(tensor, op, group, async_op):
        tensor.copy_(largest_of[op](tensor, torch.tensor([0, 5])))
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(torch.distributed, "all_reduce", with_another)
    assert Peers(process(1, of=2), 1).largest(True, 3) == [1, 5]
    assert Peers(process(), 1).largest(True, -3) == [1, -3]


def test_without_another_process_a_run_exits(monkeypatch, capsys):
    done = []
    monkeypatch.setattr(os, "_exit", lambda code: done.append(code))
    with Peers(process(1, 2), 1).watched():
        raise RuntimeError("Connection closed by peer")
    assert done == [1]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: process 1 of 2 ") and "has died" in line


def agreeing(errors: list[str | None], first: int) -> list[Peers]:
    """Processes that run one after the other, as if each saw what the others bring: `first` is the first to fail."""
    found = []
    for rank in range(len(errors)):
        peers = Peers(process(rank), 1)
        peers.accelerator.num_processes = len(errors)
        text = (errors[first] or "").encode().ljust(MESSAGE, b"\0")
        peers.largest = lambda *values, text=text: [-first] if len(values) == 1 else [*text]
        found.append(peers)
    return found


def test_a_mistake_of_one_process_is_raised_on_all():
    errors = [None, "out/a holds no run é", None]
    for peers, mine in zip(agreeing(errors, first=1), errors, strict=True):
        with pytest.raises(ValueError, match=r"^out/a holds no run é$"), peers.in_agreement():
            if mine:
                raise ValueError(mine)


def test_the_others_do_not_begin_if_the_main_process_fails():
    begun = []
    for peers in agreeing(["no such data", None], first=0):
        with pytest.raises(ValueError, match="no such data"), peers.in_agreement(main_first=True):
            begun.append(peers.accelerator.process_index)
            raise ValueError("no such data")
    assert begun == [0]


def test_a_process_alone_keeps_its_own_error():
    peers = Peers(process(), 1)
    with peers.in_agreement(main_first=True):
        pass
    with pytest.raises(FileNotFoundError), peers.in_agreement():
        raise FileNotFoundError("x")


def test_gloo_without_a_route_between_machines_names_the_variable(monkeypatch):
    def unreachable(backend, timeout):
        raise RuntimeError("Gloo connectFullMesh failed with [..] timed out connecting: SO_ERROR\nmore")

    monkeypatch.setattr(torch.distributed, "new_group", unreachable)
    with pytest.raises(ValueError, match=r"GLOO_SOCKET_IFNAME.*connectFullMesh failed.*SO_ERROR\)$"):
        Peers(SimpleNamespace(num_processes=2, process_index=0, device=torch.device("cuda")), 1)
