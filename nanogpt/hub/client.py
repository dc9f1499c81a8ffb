"""Downloads from and uploads to the Hugging Face Hub, with one-line errors.

`huggingface_hub` does the work: the token comes from `hf auth login` or $HF_TOKEN, files are kept in its cache.
"""

from contextlib import contextmanager
from pathlib import Path

from nanogpt.data.pickles import first_line

# files to download: no pickles and no code
WANTED = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
)
WANTED += (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
WANTED += ("merges.txt",)


def download(name: str, revision: str | None = None) -> Path:
    """Downloads the model `name` at a branch, tag or commit; returns the directory with its files.

    Raises ValueError if there is no such model or no network.
    """
    from huggingface_hub import snapshot_download

    with explained(name):
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(WANTED)))


def make_repository(
    name: str, private: bool = False, revision: str | None = None, space: bool = False
) -> None:
    """Creates the repository `name` on the Hub, or the static Space, and the branch, if they do not exist.

    Raises ValueError if the token, the network or write access is missing.
    """
    from huggingface_hub import HfApi

    if name.count("/") != 1:
        raise ValueError(f"{name!r} is not the name of a repository on the Hub: expected USER/NAME")
    with explained(name):
        api = HfApi()
        api.whoami()
        kind = "space" if space else "model"
        sdk = "static" if space else None
        api.create_repo(name, private=private, exist_ok=True, repo_type=kind, space_sdk=sdk)
        api.auth_check(
            name, write=True, repo_type=kind
        )  # create_repo also accepts the repository of another user
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True, repo_type=kind)


def upload(
    directory: Path, name: str, message: str, revision: str | None = None, space: bool = False
) -> str:
    """Adds the files of `directory` to the repository in one commit, without deleting others; returns its URL."""
    from huggingface_hub import HfApi

    kind = "space" if space else "model"
    with explained(name):
        done = HfApi().upload_folder(
            repo_id=name,
            folder_path=directory,
            commit_message=message,
            revision=revision,
            repo_type=kind,
        )
        return done.commit_url


@contextmanager
def explained(name: str):
    """Turns exceptions of huggingface_hub into ValueErrors that say what to do."""
    from huggingface_hub import errors, get_token

    try:
        yield
    except errors.LocalTokenNotFoundError:
        raise ValueError(
            "there is no token for the Hub: run `hf auth login`, or set HF_TOKEN"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise ValueError("HF_HUB_OFFLINE is set, so the Hub cannot be used: unset it") from None
    except errors.GatedRepoError:
        raise ValueError(
            f"{name} is gated: request access on its page, and log in by `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise ValueError(f"{name} has no such revision on the Hub") from None
    except errors.RepositoryNotFoundError:
        hint = "" if get_token() else ", or it is private and there is no token (`hf auth login`)"
        raise ValueError(
            f"{name} does not exist on the Hub or as a local directory{hint}"
        ) from None
    except errors.LocalEntryNotFoundError:
        raise ValueError(
            f"{name} is neither a local directory nor cached, and the Hub cannot be reached"
        ) from None
    except errors.HFValidationError:
        raise ValueError(
            f"{name!r} is neither a local directory nor a valid name on the Hub"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        why = {
            401: "does not accept the token (`hf auth login`)",
            403: f"does not let this token write to {name}",
        }
        raise ValueError(
            f"the Hub {why.get(status, f'answered {status}: {first_line(error)}')}"
        ) from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in (
            "httpx",
            "httpx2",
        ):  # its transport, whichever it uses
            raise
        raise ValueError(
            f"the Hub cannot be reached ({first_line(error)}): check the network"
        ) from None
