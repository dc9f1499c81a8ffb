"""The dashboard's server answers this machine alone, nothing but its page and its runs, and whatever a run holds."""

import http.client
import json
import shutil
import socket
import threading
from urllib.parse import quote

import pytest

from nanogpt.cli import main
from nanogpt.extras.dashboard.server import Server

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def server(tmp_path):
    """A dashboard on a run with a hostile name; there is a secret beside the runs."""
    run = tmp_path / "out" / HOSTILE
    run.mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("secret")
    lines = [{"step": step, "tokens": step * 10, "train_seconds": 1, "val_loss": 4 - step} for step in (0, 1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "samples.jsonl").write_text(json.dumps({"step": 2, "text": "a text"}) + "\n")
    (run / "result.json").write_text(json.dumps({"reason": "finished"}))
    with Server([str(tmp_path / "out")]) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def ask(server, path: str, method: str = "GET", **headers):
    """(status, headers, body) of a request that is sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers={key.replace("_", "-"): value for key, value in headers.items()})
    response = connection.getresponse()
    found = response.status, response.headers, response.read()
    connection.close()
    return found


def runs_of(server) -> list[dict]:
    return json.loads(ask(server, "/api/runs")[2])["runs"]


def test_runs_curves_and_samples_as_json(server):
    (run,) = runs_of(server)
    assert run["name"].endswith(HOSTILE) and run["status"] == "finished" and (run["best"], run["best_step"]) == (2, 2)
    name = quote(run["name"])
    asked = f"/api/curves?run={name}&x=tokens&points=100&key=val_loss&key=lr"
    assert json.loads(ask(server, asked)[2]) == {"val_loss": [[0, 10, 20], [4, 3, 2]], "lr": [[], []]}
    assert json.loads(ask(server, asked + "&low=15&high=20")[2])["val_loss"] == [[10, 20], [3, 2]]
    assert json.loads(ask(server, f"/api/samples?run={name}")[2]) == [{"step": 2, "text": "a text"}]
    incidental = set(json.loads(ask(server, "/api/runs")[2])["incidental"])
    assert {"out_dir", "resume"} <= incidental and not incidental & {"seed", "learning_rate", "batch_size"}


def test_the_page_asks_nothing_of_any_other_machine(server):
    for path in ("/", "/dashboard.js", "/chart.js", "/dashboard.css"):
        status, headers, body = ask(server, path)
        policy = headers["Content-Security-Policy"]
        assert status == 200 and b"//" not in body.replace(b"// ", b"")
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"  # other pages may not read
        assert "default-src 'self'" in policy and "unsafe" not in policy


HOSTS = {"evil.example:6070": 403, "127.0.0.1.evil.example": 403, "": 403, "[": 403}
HOSTS |= {"127.0.0.1:8000": 200, "localhost": 200}  # a forwarded port


@pytest.mark.parametrize("host", HOSTS)
def test_only_this_machines_own_names_are_served(server, host):
    status, _, body = ask(server, "/api/runs", Host=host)
    assert status == HOSTS[host] and (status == 200 or b"name" not in body)


@pytest.mark.parametrize(
    "request_line, expected",
    [("POST /api/runs", 501)]
    + [(f"GET {path}", 404) for path in ("/../secret.txt", "/..%2fsecret.txt", "/../server.py")]
    + [(f"GET /api/curves?{query}", 400) for query in ("", "run=7", "run=..")],
)
def test_nobody_writes_reads_other_files_or_asks_for_nonsense(server, request_line, expected):
    method, path = request_line.split(" ")
    status, _, body = ask(server, path, method)
    assert status == expected and b"secret" not in body and ask(server, "/api/runs")[0] == 200


def test_a_run_that_was_deleted_and_made_again_is_a_new_one(server, tmp_path):
    (run,) = runs_of(server)
    shutil.rmtree(tmp_path / "out" / HOSTILE)
    assert runs_of(server) == []
    assert ask(server, f"/api/samples?run={quote(run['name'])}")[0] == 400
    (tmp_path / "out" / HOSTILE).mkdir()
    (tmp_path / "out" / HOSTILE / "metrics.jsonl").write_text('{"step": 1}\n')
    (again,) = runs_of(server)
    assert again["version"] != run["version"] and (again["step"], again["best"]) == (1, None)
    shutil.rmtree(tmp_path / "out")
    assert runs_of(server) == []


def test_a_free_port_of_this_machine_alone_is_taken(tmp_path, refused):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port}" in refused(main, ["dashboard", str(tmp_path), "--port", str(port)])
    with Server([str(tmp_path)]) as first, Server([str(tmp_path)]) as second:
        assert first.server_port != second.server_port and first.server_address[0] == "127.0.0.1"
