"""Downloads from and uploads to the Hugging Face Hub, with one-line errors.

`huggingface_hub` does the work: the token comes from `hf auth login` or $HF_TOKEN, and downloads
are kept in its cache.
"""

from contextlib import contextmanager
from pathlib import Path

from nanogpt.data.files import first_line

# the files to download: no pickles and no code
WANTED = [
    "config.json",
    "model*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
]


def download(name: str, revision: str | None = None) -> Path:
    """Downloads the model `name` at a branch, tag or commit; returns the directory with its files.

    Raises ValueError if there is no such model or no network.
    """
    from huggingface_hub import snapshot_download

    with one_line_errors(name):
        return Path(snapshot_download(name, revision=revision, allow_patterns=WANTED))


def make_repository(
    name: str, private: bool = False, revision: str | None = None, space: bool = False
) -> None:
    """Creates the repository `name`, or the static Space, and the branch, if they do not exist.

    Raises ValueError if the token, the network or write access is missing.
    """
    from huggingface_hub import HfApi

    if name.count("/") != 1:
        raise ValueError(f"{name!r} is not the name of a repository on the Hub: expected USER/NAME")
    kind = "space" if space else "model"
    sdk = "static" if space else None
    with one_line_errors(name):
        api = HfApi()
        api.whoami()
        api.create_repo(name, private=private, exist_ok=True, repo_type=kind, space_sdk=sdk)
        # create_repo also accepts the repository of another user
        api.auth_check(name, write=True, repo_type=kind)
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True, repo_type=kind)


def upload(
    directory: Path, name: str, message: str, revision: str | None = None, space: bool = False
) -> str:
    """Adds the files of `directory` to a repository in one commit; returns its URL."""
    from huggingface_hub import HfApi

    with one_line_errors(name):
        commit = HfApi().upload_folder(
            repo_id=name,
            folder_path=directory,
            commit_message=message,
            revision=revision,
            repo_type="space" if space else "model",
        )
        return commit.commit_url


@contextmanager
def one_line_errors(name: str):
    """Context manager that turns exceptions of huggingface_hub into ValueErrors of one line."""
    from huggingface_hub import errors, get_token

    log_in = "" if get_token() else ", or it is private and there is no token (`hf auth login`)"
    messages = {
        errors.LocalTokenNotFoundError: "there is no token: run `hf auth login`, or set HF_TOKEN",
        errors.OfflineModeIsEnabled: "HF_HUB_OFFLINE is set, so the Hub cannot be used: unset it",
        errors.GatedRepoError: f"{name} is gated: request access on its page, and `hf auth login`",
        errors.RevisionNotFoundError: f"{name} has no such revision on the Hub",
        errors.RepositoryNotFoundError: f"{name} does not exist on the Hub or here{log_in}",
        errors.LocalEntryNotFoundError: f"{name} is not here, and the Hub cannot be reached",
        errors.HFValidationError: f"{name!r} is neither a directory nor a name on the Hub",
    }
    refusals = {
        401: "does not accept the token (`hf auth login`)",
        403: f"does not let this token write to {name}",
    }
    try:
        yield
    except tuple(messages) as error:
        message = next(text for kind, text in messages.items() if isinstance(error, kind))
        raise ValueError(message) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        answer = refusals.get(status, f"answered {status}: {first_line(error)}")
        raise ValueError(f"the Hub {answer}") from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2"):  # its transport
            raise
        reason = first_line(error)
        raise ValueError(f"the Hub cannot be reached ({reason}): check the network") from None
