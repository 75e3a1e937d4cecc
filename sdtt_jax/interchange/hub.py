"""The model hub: downloading checkpoints, and uploading ours.

Its library is imported only where it is used: the import takes 0.3 s, and most checkpoints are local.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from sdtt_jax.config import require
from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange.gguf import SUFFIX, TEMPLATE, GgufTensors
from sdtt_jax.interchange.safetensors import read_index
from sdtt_jax.paths import as_path

TENSORS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
# Other files of a repository that are read.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# Where there is no tokenizer.json.
BPE_FILES = ("vocab.json", "merges.txt")
ADDED_FILES = ("added_tokens.json", "special_tokens_map.json")  # and perhaps beside these
TEMPLATE_FILE = "chat_template.jinja"
# What goes out with a model that came with them; other libraries read them all.
CARRIED = (
    *TOKENIZER_FILES,
    *BPE_FILES,
    "tokenizer.model",
    *ADDED_FILES,
    TEMPLATE_FILE,
    "generation_config.json",
)

TOKEN_VARIABLE = "HF_TOKEN"


def fetch(repo: str, revision: str | None = None) -> Path:
    """Downloads a repository's tensors and config, or finds them in the hub's local cache.

    Args:
      repo: "owner/name".
      revision: branch, tag or commit; the main branch if None.

    Returns:
      The path of `model.safetensors`, or of the index of several files, which are then fetched too.
      `config.json` lies next to it, if there is one.

    Raises:
      CheckpointError: the hub cannot be reached, or there is no such repository, revision or file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    what = f"{repo}@{revision}" if revision else repo
    try:
        tensors = as_path(hf_hub_download(repo, TENSORS_FILE, revision=revision))
    except (EntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        # The library tries for 23 seconds to reach the hub; a hub that it did not reach is not asked again.
        reached = isinstance(error, EntryNotFoundError)
        reached = reached and not isinstance(error, LocalEntryNotFoundError)
        found = fetch_beside(repo, revision, [INDEX_FILE], cached=not reached)
        if not found:
            raise CheckpointError(_reason(what, error)) from None
        tensors = found[INDEX_FILE]
        for file in sorted(set(read_index(tensors).values())):
            if not fetch_beside(repo, revision, [file]):
                raise CheckpointError(f"{what} lacks {file}, which its index names.") from None
    fetch_beside(repo, revision, [CONFIG_FILE])
    return tensors


def fetch_beside(
    repo: str, revision: str | None, names: Iterable[str], *, cached: bool = False
) -> dict[str, Path]:
    """Those files of a repository that it has, downloaded or found in the local cache (`cached`: only there).

    A hub that is not reached for one file is not asked for those after it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    found = {}
    for name in names:
        try:
            path = hf_hub_download(repo, name, revision=revision, local_files_only=cached)
            found[name] = as_path(path)
        except (EntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
            cached = cached or isinstance(error, LocalEntryNotFoundError)
    return found


def carried(place: str) -> dict[str, bytes]:
    """The files in `CARRIED`, by name, of a published model; of a GGUF file only the template that it holds.

    Args:
      place: an absolute path of its tensors or their folder, or "owner/name[@revision]"; what is there no
        longer, or cannot be reached, is left out.
    """
    where = as_path(place)
    if where.suffix.lower() == SUFFIX:
        template = GgufTensors(where).fields.get(TEMPLATE) if where.is_file() else None
        return {TEMPLATE_FILE: template.encode()} if isinstance(template, str) else {}
    if where.is_absolute():
        folder = where if where.is_dir() else where.parent
        found = {name: folder / name for name in CARRIED if (folder / name).is_file()}
    else:
        repo, _, revision = place.partition("@")
        found = fetch_beside(repo, revision or None, CARRIED)
    return {name: path.read_bytes() for name, path in found.items()}


def push_token() -> str:
    """The token with write access, from the environment; an error if it is not set."""
    token = os.environ.get(TOKEN_VARIABLE, "")
    require(
        bool(token),
        f"Pushing to the hub needs a token with write access in ${TOKEN_VARIABLE}; nothing was written.",
    )
    return token


def push(folder: Path, repo: str, token: str, *, public: bool = False) -> str:
    """Uploads the files of a folder to a repository of the hub as one commit, and returns its address.

    The repository, "owner/name", is made if there is none; an existing one stays as `public` as it is. The
    token is that of `push_token`.

    Raises:
      CheckpointError: the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Exported by sdtt_jax")
    except HfHubHTTPError as error:
        raise CheckpointError(
            f"{repo}: the hub refuses ({error}); check that the token in ${TOKEN_VARIABLE} may write there. "
            f"The export is complete in {folder}."
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{repo}: the hub cannot be reached ({error}). The export is complete in {folder}."
        ) from None
    return f"{api.endpoint}/{repo}"


def _reason(what: str, error: Exception) -> str:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return f"{what} is gated; ask for access on its page, and set HF_TOKEN."
    if isinstance(error, RevisionNotFoundError):
        return f"{what}: the hub has no such revision of this repository."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{what}: the hub has no such repository, or it is private (set HF_TOKEN), and there is no such "
            "local path."
        )
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return (
            f"{what} has no {TENSORS_FILE}. Pickled weights (.bin, .ckpt) are not read, because that would "
            "run the code in them; if you trust them, convert them with safetensors.torch.save_file. Weights "
            "under another name, or a GGUF file: download them, and give the path of the file."
        )
    status = f" ({error})" if isinstance(error, HfHubHTTPError) else ""
    return (
        f"{what} is neither a local path nor in the hub's cache, and the hub cannot be reached{status}. "
        f"Download {TENSORS_FILE} and {CONFIG_FILE} where there is a network, and give the path of their "
        "folder."
    )
