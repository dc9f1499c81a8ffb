"""Downloads from and uploads to the Hugging Face Hub, with one-line errors.

`huggingface_hub` does the work: the token comes from `hf auth login` or $HF_TOKEN, and downloads
are kept in its cache.
"""

from functools import partial
from pathlib import Path

from nanogpt.data.files import one_line_errors

# the files to download: no pickles and no code
WANTED = ["config.json", "model*.safetensors*", "tokenizer*.json", "vocab.json", "merges.txt"]

ADVICE = "check the name, the network, HF_HUB_OFFLINE, and the token (`hf auth login`, or HF_TOKEN)"
hub_errors = partial(one_line_errors, advice=ADVICE)


def download(name: str) -> Path:
    """Downloads the model `name`; returns the directory with its files, or raises ValueError."""
    from huggingface_hub import snapshot_download

    with hub_errors(f"{name!r} is not a directory, and the Hub does not have it"):
        return Path(snapshot_download(name, allow_patterns=WANTED))


def make_repository(name: str, private: bool = False) -> None:
    """Creates the repository `name` if needed; raises ValueError without the right to write."""
    from huggingface_hub import auth_check, create_repo

    if name.count("/") != 1:
        raise ValueError(f"{name!r} is not the name of a repository on the Hub: expected USER/NAME")
    with hub_errors(f"the Hub refuses {name!r}"):
        create_repo(name, private=private, exist_ok=True)
        auth_check(name, write=True)  # create_repo also accepts another user's repository
