"""The Hugging Face Hub: what comes from it and what goes to it; where that fails, one clear line.

`huggingface_hub` does the work: the token is that of `hf auth login` or $HF_TOKEN, files are kept in its cache.
"""

from contextlib import contextmanager
from pathlib import Path

# what a model's directory may need: never a pickle, never code
WANTED = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")
WANTED += ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
WANTED += ("merges.txt",)


def download(name: str, revision: str | None = None) -> Path:
    """A directory with the files of the model `name` on the Hub, at a branch, a tag or a commit.

    Raises ValueError if there is no such model or no network.
    """
    from huggingface_hub import snapshot_download

    with explained(name):
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(WANTED)))


def make_repository(name: str, private: bool = False, revision: str | None = None) -> None:
    """Makes the repository `name` on the Hub, and the branch, before any other work is done.

    What exists is left as it is; whether it may be written to is asked. Raises ValueError where token, network or right
    are missing.
    """
    from huggingface_hub import HfApi

    if name.count("/") != 1:
        raise ValueError(f"{name!r} does not name a place on the Hub: expected USER/NAME")
    with explained(name):
        api = HfApi()
        api.whoami()
        api.create_repo(name, private=private, exist_ok=True)
        api.auth_check(name, write=True)  # one that exists may be somebody else's
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)


def upload(directory: Path, name: str, message: str, revision: str | None = None) -> str:
    """Adds the files of `directory` to the repository in one commit, deleting none there; returns its address."""
    from huggingface_hub import HfApi

    with explained(name):
        return (
            HfApi()
            .upload_folder(repo_id=name, folder_path=directory, commit_message=message, revision=revision)
            .commit_url
        )


@contextmanager
def explained(name: str):
    """Turns what huggingface_hub raises into ValueErrors that say what to do."""
    from huggingface_hub import errors, get_token

    try:
        yield
    except errors.LocalTokenNotFoundError:
        raise ValueError("there is no token for the Hub: run `hf auth login`, or set HF_TOKEN") from None
    except errors.OfflineModeIsEnabled:
        raise ValueError("HF_HUB_OFFLINE is set, so the Hub is not asked: unset it") from None
    except errors.GatedRepoError:
        raise ValueError(f"{name} is given only to those who asked for it on its page, with their token") from None
    except errors.RevisionNotFoundError:
        raise ValueError(f"{name} has no such revision on the Hub") from None
    except errors.RepositoryNotFoundError:
        hint = "" if get_token() else ", or it is private and there is no token (`hf auth login`)"
        raise ValueError(f"{name} does not exist on the Hub, nor as a directory here{hint}") from None
    except errors.LocalEntryNotFoundError:
        raise ValueError(f"{name} is no directory here, nor in the Hub's cache, and the Hub is out of reach") from None
    except errors.HFValidationError:
        raise ValueError(f"{name!r} is no directory here, and cannot be a name on the Hub") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        why = {401: "does not accept the token (`hf auth login`)", 403: f"does not let this token write to {name}"}
        raise ValueError(f"the Hub {why.get(status, f'answered {status}: {first_line(error)}')}") from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2"):  # its transport, whichever it uses
            raise
        raise ValueError(f"the Hub cannot be reached ({first_line(error)}): try again with a network") from None


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
