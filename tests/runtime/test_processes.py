"""Processes that die or hang are in tests/integration/test_interruptions.py."""

import os
from types import SimpleNamespace

import pytest
import torch

from nanogpt.runtime.processes import Peers, lost


def two() -> SimpleNamespace:
    return SimpleNamespace(num_processes=2, process_index=1, device=torch.device("cpu"))


def test_a_process_alone_agrees_with_itself():
    assert Peers(SimpleNamespace(num_processes=1), 1).largest(True, -3) == [1, -3]


@pytest.mark.parametrize(
    "error, reason",
    [
        (
            "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3",
            "another process of the run has died",
        ),
        (
            "Timed out waiting 4000ms for recv operation to complete",
            "another process of the run has not answered for 4 s",
        ),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_what_errors_say_about_other_processes(error, reason):
    said = lost(error, 4)
    assert said is None if reason is None else said.startswith(reason)


def test_errors_of_a_process_alone_pass_through():
    with pytest.raises(RuntimeError, match="Timed out"), Peers(SimpleNamespace(num_processes=1), 1).watched(print):
        raise RuntimeError("Timed out")


def test_processes_agree_on_the_largest(monkeypatch):
    largest_of = {torch.distributed.ReduceOp.MAX: torch.maximum, torch.distributed.ReduceOp.MIN: torch.minimum}

    def with_another(tensor, op, group):
        tensor.copy_(largest_of[op](tensor, torch.tensor([0, 5])))

    monkeypatch.setattr(torch.distributed, "all_reduce", with_another)
    assert Peers(two(), 1).largest(True, 3) == [1, 5]


def test_where_another_has_died_the_last_save_ends_and_the_exit_code_is_1(monkeypatch, capsys):
    done = []
    monkeypatch.setattr(os, "_exit", lambda code: done.append(code))
    with Peers(two(), 1).watched(lambda: done.append("saved")):
        raise RuntimeError("Connection closed by peer")
    assert done == ["saved", 1]
    assert capsys.readouterr().err.startswith("error: process 1 of 2 stops: another process of the run has died; ")
