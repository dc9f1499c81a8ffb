"""Processes agree on values, on mistakes and on who died. Real ones are in integration/test_interruptions.py."""

import os
from types import SimpleNamespace

import pytest
import torch

from nanogpt.run.agree import Peers


def process(rank: int = 0, of: int = 1) -> SimpleNamespace:
    """An accelerator of one of several processes."""
    return SimpleNamespace(num_processes=of, process_index=rank, is_main_process=rank == 0, device=torch.device("cpu"))


def test_processes_agree_on_the_largest(monkeypatch):
    largest_of = {torch.distributed.ReduceOp.MAX: torch.maximum, torch.distributed.ReduceOp.MIN: torch.minimum}

    def with_another(tensor, op, group):
        tensor.copy_(largest_of[op](tensor, torch.tensor([0, 5])))

    monkeypatch.setattr(torch.distributed, "all_reduce", with_another)
    assert Peers(process(1, of=2), 1).all_max(True, 3) == [1, 5]
    assert Peers(process(), 1).all_max(True, -3) == [1, -3]


def test_without_another_process_a_run_exits(monkeypatch, capsys):
    done = []
    monkeypatch.setattr(os, "_exit", lambda code: done.append(code))
    with Peers(process(1, of=2), 1).watched():
        raise RuntimeError("Connection closed by peer")
    assert done == [1]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: process 1 of 2 ") and "has died" in line


@pytest.fixture
def processes(monkeypatch):
    """Two processes that run one after the other; `messages` are those that each sees."""
    messages = [None, None]
    gather = lambda found, mine, group: found.__setitem__(slice(None), messages)  # noqa: E731
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    found = [Peers(process(rank, of=2), 1) for rank in range(2)]
    return found, messages


def test_a_mistake_of_one_process_is_raised_on_all(processes):
    found, messages = processes
    messages[1] = "out/a holds no run é"
    for peers, mine in zip(found, messages, strict=True):
        with pytest.raises(ValueError, match=r"^out/a holds no run é$"), peers.in_agreement():
            if mine:
                raise ValueError(mine)


def test_the_others_do_not_begin_if_the_main_process_fails(processes):
    found, messages = processes
    messages[0] = "no such data"
    begun = []
    for peers in found:
        with pytest.raises(ValueError, match="no such data"), peers.in_agreement(main_first=True):
            begun.append(peers.accelerator.process_index)
            raise ValueError("no such data")
    assert begun == [0]
