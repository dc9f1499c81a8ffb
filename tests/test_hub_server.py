"""The local Hub against unmodified clients, each in a process of its own that knows nothing but the environment."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from transformers import GPT2Config

CARD = b"---\nlicense: mit\n---\n# A model\n"
WEIGHTS = save({"w": np.arange(6.0).reshape(2, 3)})


@pytest.fixture
def client(hub, tmp_path):
    """Runs Python code against the hub; returns what its last line printed, as JSON."""

    def run(code: str, token: str | None = "hf_alice", home: str = "home"):
        environment = os.environ | hub.environment(token, tmp_path / home)
        code = (
            f"import json\nfrom huggingface_hub import *\nfrom huggingface_hub.errors import *\napi = HfApi()\n{code}"
        )
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "README.md").write_bytes(CARD)
    (tmp_path / "model" / "model.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "model" / "deep" / "ä b.txt").write_text("ü")
    return tmp_path / "model"


def test_a_folder_is_uploaded_and_comes_back_in_a_snapshot(hub, client, folder):
    result = client(f"""
api.create_repo("alice/model", private=True)
first = api.upload_folder(repo_id="alice/model", folder_path={str(folder)!r}).oid
second = api.upload_file(path_or_fileobj=b"more", path_in_repo="more.txt", repo_id="alice/model").oid
print(json.dumps([api.whoami()["name"], first, second]))
""")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    arrived = hub.files("alice/model")
    assert {name: arrived[name] for name in files} == files and arrived["more.txt"] == b"more"
    assert hub.repos["alice/model"].private
    assert [m for m, path, status in hub.requests if path.startswith("/lfs/")] == ["PUT"]  # the weights, and only they
    name, first, second = result
    assert name == "alice" and hub.repos["alice/model"].branches["main"] == second

    path, old, one = client(
        f"""
newest, old = snapshot_download("alice/model"), snapshot_download("alice/model", revision="{first}")
print(json.dumps([newest, old, hf_hub_download("alice/model", "model.safetensors")]))
""",
        home="other",
    )
    downloaded = {p.relative_to(path).as_posix(): p.read_bytes() for p in Path(path).rglob("*") if p.is_file()}
    assert downloaded == arrived
    assert Path(old).name == first and not (Path(old) / "more.txt").exists()
    assert Path(one).read_bytes() == WEIGHTS


def test_an_upload_adds_to_what_is_there_and_deletes_only_what_it_is_told_to(hub, client, folder):
    hub.add("alice/model", {"notes.txt": b"keep", "old/a.txt": b"1", "old/b.txt": b"2", "README.md": b"old"})
    client(f"""
try:
    api.create_repo("alice/model")
except HfHubHTTPError as error:
    assert error.response.status_code == 409
api.create_repo("alice/model", exist_ok=True)
api.upload_folder(repo_id="alice/model", folder_path={str(folder)!r}, delete_patterns=["old/a.txt"])
print(json.dumps(api.list_repo_files("alice/model")))
""")
    files = hub.files("alice/model")
    assert files["notes.txt"] == b"keep" and files["README.md"] == CARD
    assert "old/a.txt" not in files and files["old/b.txt"] == b"2"


def test_a_branch_takes_a_commit_and_main_stays(hub, client):
    main = hub.add("alice/model", {"a.txt": b"1"})
    commit = client("""
api.create_branch("alice/model", branch="v1.0/x")
api.create_branch("alice/model", branch="v1.0/x", exist_ok=True)
commit = api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id="alice/model", revision="v1.0/x")
text = open(hf_hub_download("alice/model", "a.txt", revision="v1.0/x")).read()
assert text == "2" and open(hf_hub_download("alice/model", "a.txt")).read() == "1"
print(json.dumps(commit.oid))
""")
    assert hub.repos["alice/model"].branches == {"main": main, "v1.0/x": commit}
    assert hub.files("alice/model")["a.txt"] == b"1" and hub.files("alice/model", commit)["a.txt"] == b"2"


def test_an_unchanged_file_makes_no_commit(hub, client):
    hub.add("alice/model", {"a.txt": b"1", "model.safetensors": WEIGHTS})
    client(f"""
api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id="alice/model")
api.upload_file(path_or_fileobj={WEIGHTS!r}, path_in_repo="model.safetensors", repo_id="alice/model")
print("0")
""")
    assert hub.repos["alice/model"].messages == ["initial commit", "add"]


@pytest.mark.parametrize(
    "token, action, error",
    [
        ("hf_nobody", "api.whoami()", ["HfHubHTTPError", 401]),
        (None, "api.create_repo('alice/new')", ["HfHubHTTPError", 401]),
        ("hf_alice_read", "api.create_repo('alice/new')", ["HfHubHTTPError", 403]),
        ("hf_bob", "api.create_repo('alice/new')", ["HfHubHTTPError", 403]),
        (
            "hf_bob",
            "api.upload_file(path_or_fileobj=b'', path_in_repo='a', repo_id='alice/open')",
            ["HfHubHTTPError", 403],
        ),
        ("hf_bob", "api.model_info('alice/secret')", ["RepositoryNotFoundError", 404]),
        (None, "hf_hub_download('alice/secret', 'a.txt')", ["RepositoryNotFoundError", 401]),
        (None, "hf_hub_download('alice/open', 'b.txt')", ["RemoteEntryNotFoundError", 404]),
        (None, "hf_hub_download('alice/open', 'a.txt', revision='v2')", ["RevisionNotFoundError", 404]),
        (
            "hf_alice",
            "api.upload_file(path_or_fileobj=b'', path_in_repo='a', repo_id='alice/open', parent_commit='0' * 40)",
            ["HfHubHTTPError", 412],
        ),
    ],
)
def test_what_the_hub_refuses(hub, client, token, action, error):
    hub.add("alice/open", {"a.txt": b"1"})
    hub.add("alice/secret", {"a.txt": b"1"}, private=True)
    seen = client(
        f"""
try:
    {action}
except HfHubHTTPError as error:
    print(json.dumps([type(error).__name__, error.response.status_code]))
""",
        token,
    )
    assert seen == error
    assert set(hub.repos) == {"alice/open", "alice/secret"} and hub.files("alice/open")["a.txt"] == b"1"


def test_a_card_with_broken_metadata_is_refused_before_anything_is_uploaded(hub, client):
    hub.add("alice/model", {})
    client("""
try:
    api.upload_file(path_or_fileobj=b"---\\nlicense: [\\n---\\n", path_in_repo="README.md", repo_id="alice/model")
except ValueError as error:
    assert "Invalid metadata in README.md" in str(error)
    print("0")
""")
    assert "README.md" not in hub.files("alice/model")


def test_transformers_reads_a_configuration_with_and_without_a_namespace(hub, client):
    config = GPT2Config(n_layer=3, n_embd=24, n_head=2).to_json_string().encode()
    commit = hub.add("alice/model", {"config.json": config})
    hub.add("tiny", {"config.json": config})
    assert client(
        f"""
from transformers import AutoConfig
configs = AutoConfig.from_pretrained("alice/model", revision="{commit}"), AutoConfig.from_pretrained("tiny")
print(json.dumps([[c.n_layer, c.n_embd] for c in configs]))
""",
        token=None,
    ) == [[3, 24], [3, 24]]
