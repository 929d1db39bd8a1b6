"""Uploads a model folder to the Hugging Face Hub; explicitly asked for, and private by default.

Knows the Hub's client. Nothing else of posttrain ever calls out.

    push_folder(Path("my-model"), "me/my-model", public=False)
"""

import os
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

from posttrain.errors import BadInput, StepFailed
from posttrain.models.folders import check_model_folder

CARD = "README.md"
NAMES = (CARD, "LICENSE", "chat_template.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
ENDINGS = (".safetensors", ".json")


def push_folder(folder: Path, repo: str, public: bool = False, revision: str | None = None) -> str:
    """Upload a model folder with its card as one commit; the commit's address.

    Args:
        folder: What `posttrain export` or `posttrain average` wrote.
        repo: `user/name`; made if it is not there.
        public: Whether everyone may see it. Without, a repository that is public is refused.
        revision: Branch; made if it is not there. None is the main one.

    Raises:
        BadInput: no model folder with a card, a file that belongs to no model, a name that is none,
            or a public repository without `public`.
        Damaged: a weight file is truncated or missing.
        StepFailed: the Hub refused or could not be reached.
    """
    check_model_folder(folder)
    files = listed(folder)
    api = HfApi(os.environ.get("HF_ENDPOINT"), library_name="posttrain")
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        if not public and not api.repo_info(repo).private:
            raise BadInput(f"{repo}: this repository is public; say --public, or name another one")
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=files,
            revision=revision,
            commit_message=f"Upload {folder.name} with posttrain",
        )
    except HFValidationError as error:
        raise BadInput(f"{repo}: expected user/name ({_first_line(error)})") from error
    except LocalTokenNotFoundError as error:
        raise BadInput("no token: run `hf auth login`, or set HF_TOKEN") from error
    except HTTPError as error:
        hint = "" if os.environ.get("HF_TOKEN") else "; is HF_TOKEN set, or `hf auth login` done?"
        raise StepFailed(f"{repo}: the Hub says: {_first_line(error)}{hint}") from error
    return str(done.commit_url)


def listed(folder: Path) -> list[str]:
    """Names of the files that are uploaded: all there are.

    Raises:
        BadInput: there is no card, or a file that belongs to no model.
    """
    names = sorted(path.name for path in folder.iterdir())
    if CARD not in names:
        raise BadInput(
            f"{folder}: expected a model card, {CARD}; posttrain export and average write one"
        )
    for name in names:
        if not (folder / name).is_file() or not (name in NAMES or name.endswith(ENDINGS)):
            raise BadInput(
                f"{folder / name}: belongs to no model and would be published; move it away"
            )
    return names


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
