"""Processes that die or hang are in tests/integration/test_interruptions.py."""

import os
from types import SimpleNamespace

import pytest
import torch

from nanogpt.data.remote import Unreachable
from nanogpt.run.agree import MESSAGE, Peers, lost


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


@pytest.mark.parametrize("processes", [1, 2])
def test_data_at_a_url_that_cannot_be_read_ends_a_run_with_one_line(monkeypatch, capsys, processes):
    done, alone = [], SimpleNamespace(num_processes=1, process_index=0)
    monkeypatch.setattr(os, "_exit", lambda code: done.append(code))
    with Peers(two() if processes == 2 else alone, 1).watched(lambda: done.append("saved")):
        raise Unreachable("s3://a/train.bin cannot be read (timeout)")
    assert done == ["saved", 1]
    err = f"error: process {processes - 1} of {processes} stops: s3://a/train.bin cannot be read (timeout)"
    assert capsys.readouterr().err.startswith(err)


def agreeing(errors: list[str | None], first: int) -> list[Peers]:
    """Processes that run one after the other, as if each saw what the others bring: `first` is the first to fail."""
    found = []
    for rank in range(len(errors)):
        peers = Peers(SimpleNamespace(num_processes=1, process_index=rank, is_main_process=rank == 0), 1)
        peers.accelerator.num_processes = len(errors)
        text = (errors[first] or "").encode().ljust(MESSAGE, b"\0")
        peers.largest = lambda *values, text=text: [-first] if len(values) == 1 else [*text]
        found.append(peers)
    return found


def test_a_mistake_that_one_process_finds_is_raised_on_all_with_its_message():
    errors = [None, "out/a holds no run é", None]
    for peers, mine in zip(agreeing(errors, first=1), errors, strict=True):
        with pytest.raises(ValueError, match=r"^out/a holds no run é$"), peers.in_agreement():
            if mine:
                raise ValueError(mine)


def test_the_others_do_not_begin_where_the_main_process_fails_first():
    begun = []
    for peers in agreeing(["no such data", None], first=0):
        with pytest.raises(ValueError, match="no such data"), peers.in_agreement(main_first=True):
            begun.append(peers.accelerator.process_index)
            raise ValueError("no such data")
    assert begun == [0]


def test_a_process_alone_keeps_its_own_error():
    peers = Peers(SimpleNamespace(num_processes=1, process_index=0, is_main_process=True), 1)
    with peers.in_agreement(main_first=True):
        pass
    with pytest.raises(FileNotFoundError), peers.in_agreement():
        raise FileNotFoundError("x")


def test_gloo_without_a_route_between_machines_names_the_variable(monkeypatch):
    def unreachable(backend, timeout):
        raise RuntimeError("Gloo connectFullMesh failed with [..] timed out connecting: SO_ERROR\nmore")

    monkeypatch.setattr(torch.distributed, "new_group", unreachable)
    on_gpu = SimpleNamespace(num_processes=2, process_index=0, device=torch.device("cuda"))
    with pytest.raises(ValueError, match=r"set GLOO_SOCKET_IFNAME to .*connectFullMesh failed.*SO_ERROR\)$"):
        Peers(on_gpu, 1)
