"""Adapter folders on the Hugging Face Hub: found by repository id, and published.

What is there as a path is taken as it is, and the network is not asked. Nothing but an adapter's own files is
fetched or sent. Knows nothing of models.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import huggingface_hub  # loads next to nothing before it is used

from mma import folder, peft_folder
from mma.card import HUB_ID, model_card, portable, without_folders
from mma.config import brief, plain
from mma.errors import AdapterError

FILES = (folder.CONFIG, folder.TENSORS, folder.CARD, peft_folder.OUR_CONFIG, peft_folder.OUR_TENSORS)
REVISION = re.compile(r"(?!.*\.\.)\w[\w./-]*", re.ASCII)
# What huggingface_hub stumbles over when something else answers, such as the login page of a network.
NO_HUB = (json.JSONDecodeError, TypeError, AttributeError, LookupError, AssertionError)
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
Result = TypeVar("Result")


def find(path_or_id: Path | str, revision: str | None = None) -> Path:
    """The folder of an adapter: a path that is there, or else a repository `owner/name` of the Hub.

    A repository is fetched to the cache of huggingface_hub, at a `revision` or as `owner/name@revision`. With
    HF_HUB_OFFLINE set, or where the Hub does not answer, the cache is all that is asked. Raises AdapterError
    for what is neither, and for whatever fails on the way.
    """
    name = str(path_or_id)
    if os.path.exists(name):
        return Path(name)
    repository, at, wanted = name.partition("@")
    if not HUB_ID.fullmatch(repository):
        raise AdapterError(
            f"adapter: there is no folder {brief(name, 200)}, and it is no repository id (owner/name or "
            "owner/name@revision) either; correct the path"
        )
    if at and revision is not None:
        raise AdapterError(f"adapter: {name} and {brief(revision)} both name a revision; name one")
    revision = wanted if at else revision
    if revision is not None and not REVISION.fullmatch(revision):
        raise AdapterError(
            f"adapter: {brief(revision)} is no revision of {repository}; name a branch, a tag or a commit"
        )
    problem = f"there is no folder {name} here, and the repository {repository} cannot be fetched"
    found = _reported(lambda: _fetch(repository, revision), problem)
    if missing := [file for file in (folder.CONFIG, folder.TENSORS) if not (found / file).is_file()]:
        raise AdapterError(
            f"adapter: the repository {repository} has no {' and no '.join(missing)}; name one of an adapter"
        )
    return found


def push_to_hub(
    path: Path | str,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    commit_message: str = "Upload adapter with mma",
) -> str:
    """Publishes an adapter folder as one commit to a repository of the Hub, and gives its URL.

    A repository that is not there yet is made, `private` unless told otherwise. Tensors are sent as they are.
    In settings and model card every absolute path (of the base, the data, the run) is cut to its last name:
    nothing is told of this machine, and who loads the adapter says where the base is. The folder itself stays
    as it is. Raises AdapterError for a folder that is not complete, and for whatever fails on the way.
    """
    if not HUB_ID.fullmatch(repo_id):
        raise AdapterError(f"adapter: {brief(repo_id)} is no repository id; name it owner/name")
    files = published_files(Path(path))
    problem = f"the repository {repo_id} cannot be written"
    return _reported(lambda: _commit(repo_id, files, private, token, commit_message), problem)


def published_files(path: Path) -> dict[str, bytes | Path]:
    """What `push_to_hub` sends of a complete adapter folder, by name: content, or the file that holds it."""
    description = folder.read_description(path)
    tensors = folder.read_tensors(path / folder.TENSORS)
    files: dict[str, bytes | Path] = {
        folder.CONFIG: folder.json_bytes(portable(description)),
        folder.TENSORS: path / folder.TENSORS,
    }
    if (path / peft_folder.OUR_CONFIG).is_file():
        description = folder.read_json(path / peft_folder.OUR_CONFIG)
        files[peft_folder.OUR_CONFIG] = folder.json_bytes(portable(description))
    if (path / peft_folder.OUR_TENSORS).is_file():
        tensors |= folder.read_tensors(path / peft_folder.OUR_TENSORS)
        files[peft_folder.OUR_TENSORS] = path / peft_folder.OUR_TENSORS
    try:
        # It may be its owner's, so it is not made anew.
        card = without_folders((path / folder.CARD).read_text("utf-8"))
    except FileNotFoundError:
        card = model_card(description, tensors)
    except (OSError, UnicodeError) as error:
        raise AdapterError(
            f"adapter: {path / folder.CARD} cannot be read ({plain(error, 160)}); remove it to get a new one"
        ) from error
    return {**files, folder.CARD: card.encode()}


def _fetch(repository: str, revision: str | None) -> Path:
    return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))


def _commit(
    repository: str, files: Mapping[str, bytes | Path], private: bool, token: str | None, message: str
) -> str:
    api = huggingface_hub.HfApi(token=token)
    url = api.create_repo(repository, private=private, exist_ok=True)
    # What is left there of another adapter would be read with this one.
    left = [name for name in api.list_repo_files(repository) if name in FILES and name not in files]
    operations: list[huggingface_hub.CommitOperationAdd | huggingface_hub.CommitOperationDelete] = [
        *(huggingface_hub.CommitOperationAdd(name, content) for name, content in files.items()),
        *(huggingface_hub.CommitOperationDelete(name) for name in left),
    ]
    api.create_commit(repository, operations, commit_message=message)
    return str(url)


def _reported(ask: Callable[[], Result], problem: str) -> Result:
    """What huggingface_hub gives; every failure of it becomes one line."""
    from huggingface_hub import constants, errors  # noqa: PLC0415, it takes a tenth of a second

    # They are all there, the base of its HTTP library's too. What answers and is no Hub (the login page of a
    # network) shows in it as a value of another type than it expects.
    own = (x for x in vars(errors).values() if isinstance(x, type) and issubclass(x, Exception))
    unexpected = (TypeError, AttributeError, LookupError, AssertionError)
    failures: tuple[type[Exception], ...] = (*own, *unexpected, OSError, ValueError, RuntimeError)
    try:
        return ask()
    except failures as error:
        reason = _reason(error, constants.HF_HUB_OFFLINE)
        raise AdapterError(f"adapter: {problem} ({constants.ENDPOINT}): {reason}") from error


def _reason(error: BaseException, offline: bool) -> str:
    """What failed, and what to do."""
    from huggingface_hub import errors  # noqa: PLC0415, as above

    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)

    def any_is(kind: type[BaseException]) -> bool:
        return any(isinstance(link, kind) for link in chain)

    full = any(isinstance(link, OSError) and link.errno in FULL_DISK for link in chain)
    status = {getattr(getattr(link, "response", None), "status_code", None) for link in chain}
    for applies, advice in (
        (full, "the disk is full; free some space, or set HF_HOME to a folder on another one"),
        (offline, "HF_HUB_OFFLINE is set, which leaves what the cache holds; unset it"),
        (any_is(errors.GatedRepoError), "its owner has to let you in; ask on its page, then set HF_TOKEN"),
        (any_is(errors.RevisionNotFoundError), "it has no such revision; name another branch, tag or commit"),
        (
            any_is(errors.RepositoryNotFoundError),
            "there is none that you may see; correct the name, or set HF_TOKEN",
        ),
        (isinstance(error, NO_HUB), "what answers there is no Hub; check the network and HF_ENDPOINT"),
        (status & {401, 403}, "access is refused; set HF_TOKEN to a token that allows it"),
    ):
        if applies:
            return advice
    # These two wrap what says more.
    wraps = isinstance(error, (errors.LocalEntryNotFoundError, RuntimeError)) and len(chain) > 1
    said = " ".join(str(chain[1] if wraps else error).split()) or type(error).__name__
    return f"{plain(said, 200)}; check the network and HF_ENDPOINT"
