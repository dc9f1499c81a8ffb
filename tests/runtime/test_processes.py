"""Processes that die or hang are in tests/integration/test_interruptions.py."""

from types import SimpleNamespace

import pytest

from nanogpt.runtime.processes import Peers, lost


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
