"""The local Hub of the tests against the unmodified client: what they take from it is what huggingface_hub does."""

from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors.numpy import save

WEIGHTS = save({"w": np.arange(6.0).reshape(2, 3)})


@pytest.mark.nightly
def test_what_is_uploaded_comes_back_at_its_revision_and_only_its_owner_may_write(hub, tmp_path):
    files = {"README.md": b"---\nlicense: mit\n---\n", "model.safetensors": WEIGHTS, "ä b.txt": "ü".encode()}
    for name, content in files.items():
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content)
    api = HfApi()
    api.create_repo("alice/model", private=True)
    first = api.upload_folder(repo_id="alice/model", folder_path=tmp_path / "model").oid
    api.create_branch("alice/model", branch="v1")
    second = api.upload_file(path_or_fileobj=b"more", path_in_repo="more.txt", repo_id="alice/model").oid
    assert hub.repos["alice/model"].private and hub.repos["alice/model"].branches == {"main": second, "v1": first}
    assert files.items() <= hub.files("alice/model").items() and "more.txt" not in hub.files("alice/model", "v1")
    snapshot = Path(snapshot_download("alice/model"))
    assert {f.name: f.read_bytes() for f in snapshot.iterdir()} == hub.files("alice/model")
    assert Path(hf_hub_download("alice/model", "model.safetensors", revision=first)).read_bytes() == WEIGHTS
    for token, status in (("hf_bob", 404), ("hf_alice_read", 403), ("hf_nobody", 401)):
        with pytest.raises(HfHubHTTPError) as error:
            HfApi(token=token).upload_file(path_or_fileobj=b"", path_in_repo="a", repo_id="alice/model")
        assert error.value.response.status_code == status
