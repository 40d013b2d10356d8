"""Where weights come from: a file, a folder, the workdir of a run, or a repository of the hub.

    resnet50.pth                            a file
    weights/                                a folder with model.safetensors or one weights file
    runs/digits                             the workdir of a run: its newest checkpoint
    hf:timm/resnet50.a1_in1k                a repository of the Hugging Face hub
    hf:timm/resnet50.a1_in1k@v1/model.safetensors    a revision of it, and a file there

Repositories are read through the package huggingface_hub, an optional one, and cached where and as
it caches: what was fetched once is there without a network. Its environment variables hold:
HF_HUB_OFFLINE, HF_ENDPOINT (a mirror), HF_HOME, HF_TOKEN. Nothing else is fetched: what stands
under another address is downloaded by hand.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lambdanet.interop.reading import RUN_FOLDER, SUFFIXES, WeightsFileError, brief, check_is_file

HUB = "hf:"
USUAL = ("model.safetensors", "pytorch_model.bin")
"""Names that are taken where there are several weights files, the first that is there."""
_FORM = "'hf:OWNER/NAME[@REVISION][/FILE]'"
_REPOSITORY = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/[\w.-]+/[\w.-]+|[^/@\s]+))?(?:/(?P<file>\S+))?"
)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # a drive has one letter
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
_LISTED = 20  # files named in an error before the rest is only counted


@dataclass(frozen=True)
class Source:
    """A source of weights that was found.

    Attributes:
        path: the weights file, or the workdir of a run.
        is_run: which of the two.
        given: as it was named.
    """

    path: Path
    is_run: bool
    given: str

    def __str__(self) -> str:
        return self.given

    def __fspath__(self) -> str:
        return str(self.path)


def resolve(source: str | os.PathLike | Source) -> Source:
    """Finds the weights file, or the run, that a source names; what is on the hub is fetched.

    Args:
        source: see the head of this file; one that was found is returned as it is.

    Raises:
        FileNotFoundError: no such file or folder; says what stands beside it.
        WeightsFileError: nothing, or more than one thing, to choose from in a folder or repository;
            a repository, revision or file that does not exist; a hub that cannot be reached or
            refuses; another address; huggingface_hub is not installed.
    """
    if isinstance(source, Source):
        return source
    given = os.fspath(source)
    if given.startswith(HUB):
        return Source(_from_hub(given), False, given)
    if _ADDRESS.match(given):
        raise WeightsFileError(
            f"{brief(given, 400)} is an address, and only repositories of the hub, {_FORM}, are "
            "fetched. Download it and name the file"
        )
    given = os.path.expanduser(given)  # shells leave the ~ of --weights=~/x alone
    path = Path(given)
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:  # a name that the system refuses
        reason = getattr(error, "strerror", None) or error  # the error itself repeats the name
        raise FileNotFoundError(f"no such file: {brief(given)} ({reason})") from None
    if not is_folder:
        check_is_file(given)
        return Source(path, False, given)
    if (path / RUN_FOLDER).is_dir():
        return Source(path, True, given)
    names = [entry.name for entry in path.iterdir() if entry.is_file()]
    return Source(path / choose(names, f"the folder {given}"), False, given)


def choose(names: Collection[str], where: str) -> str:
    """Returns the weights file among names of files: one of `USUAL`, or the only one.

    Args:
        names: of all files.
        where: they are, for the message.

    Raises:
        WeightsFileError: there is none, or several.
    """
    usual = next((name for name in USUAL if name in names), None)
    found = sorted(name for name in names if name.lower().endswith(SUFFIXES))
    if usual or len(found) == 1:
        return usual or found[0]
    if not found:
        raise WeightsFileError(
            f"{where} has no weights file (its name ends with one of {', '.join(SUFFIXES)}) and is "
            f"no workdir of a run (which has a folder {RUN_FOLDER!r}); there are: {_listed(names)}"
        )
    raise WeightsFileError(
        f"{where} has several weights files and no {USUAL[0]}; name one of them: {_listed(found)}"
    )


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(brief(name, 100) for name in sorted(names)[:_LISTED])
    more = len(names) - _LISTED
    return f"{shown} and {more} more" if more > 0 else shown or "no files"


def _from_hub(given: str) -> Path:
    """Returns the path of a file of a repository in the hub's cache, where it is put if need be."""
    match = _REPOSITORY.fullmatch(given.removeprefix(HUB))
    if match is None:
        raise WeightsFileError(
            f"{brief(given)!r} is no repository of the hub; allowed: {_FORM}, for example "
            "'hf:timm/resnet50.a1_in1k'"
        )
    name, revision, file = match["name"], match["revision"], match["file"]
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants, errors
    except ImportError as error:
        raise WeightsFileError(
            f"{given}: reading from the hub needs the package huggingface_hub, which cannot be "
            f"imported ({error}); run `pip install 'lambdanet[hub]'`, in a clone "
            "`pip install '.[hub]'`, or fetch the file by other means and name it"
        ) from error
    where = f"the repository {name}" + (f" at revision {revision}" if revision else "")
    try:
        try:
            # a call that is tried once: the others keep at a hub that is away for half a minute
            info = hub.HfApi().model_info(
                name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
            there = [file.rfilename for file in info.siblings or ()]
            if file and file not in there:
                raise WeightsFileError(
                    f"{given}: {where} has no file {file}; there are: {_listed(there)}"
                )
            file = file or choose(there, where)
            return Path(hub.hf_hub_download(name, file, revision=revision))
        except (errors.HFValidationError, WeightsFileError):
            raise
        except Exception as error:  # offline, or the hub cannot be reached, in many forms
            # of a file, what the hub answers is the cause of an error of the cache
            kinds = errors.HfHubHTTPError
            answer = next((e for e in (error, error.__cause__) if isinstance(e, kinds)), None)
            status = answer.response.status_code if answer else 0
            if status and status != 429 and status < 500:
                raise answer from None
            return _cached(hub, name, revision, file, given, error, status)
    except errors.GatedRepoError as error:
        raise WeightsFileError(
            f"{given}: {where} asks its readers to agree to its terms: do so on its page, and log "
            "in with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsFileError(
            f"{given}: the hub {constants.ENDPOINT} has no repository {name}, or it is private; "
            "check the name (`python -m models --pretrained` lists public ones), or set HF_TOKEN "
            "to a token that may read it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsFileError(
            f"{given}: the repository {name} has no revision {revision or 'main'}; give a branch, "
            f"a tag or a commit of it{_branches(hub, name)}"
        ) from error
    except errors.HFValidationError as error:
        raise WeightsFileError(f"{given}: {brief(str(error))}; allowed: {_FORM}") from error
    except errors.HfHubHTTPError as error:
        needs = "; set HF_TOKEN to a token that may read it, or unset one that is not valid"
        raise WeightsFileError(
            f"{given}: the hub {constants.ENDPOINT} refuses: {brief(str(error).splitlines()[0])}"
            f"{needs if error.response.status_code in (401, 403) else ''}"
        ) from error


def _cached(
    hub: Any,
    name: str,
    revision: str | None,
    file: str | None,
    given: str,
    cause: Exception,
    status: int,
) -> Path:
    """Returns the file as it was fetched before; without a network this is all there is."""
    try:
        # the folder of the snapshot, however much of it is there
        folder = Path(hub.snapshot_download(name, revision=revision, local_files_only=True))
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        path = folder / (file or choose(names, f"what is cached of {name}"))
        if path.is_file():
            return path
    except (OSError, ValueError) as error:
        if isinstance(error, WeightsFileError):
            raise
    what = f"{name}{f'@{revision}' if revision else ''}{f'/{file}' if file else ''}"
    why, fix = _why_not(hub, cause, status)
    raise WeightsFileError(
        f"{given}: {why}, and {what} is not in the cache {hub.constants.HF_HUB_CACHE}; {fix}, or "
        "fetch the file by other means and name it"
    ) from cause


def _why_not(hub: Any, error: Exception, status: int) -> tuple[str, str]:
    """Returns why nothing was fetched, and what helps; `status`: of the hub's answer, 0 = none."""
    constants = hub.constants
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so nothing is fetched", (
            "unset HF_HUB_OFFLINE for the first time"
        )
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"the cache {constants.HF_HUB_CACHE} cannot be written ({brief(str(error))})", (
            "make room or name another folder by HF_HOME"
        )
    if status == 429:
        return f"the hub {constants.ENDPOINT} takes no more requests for now (status 429)", (
            "try later, or set HF_TOKEN, with which it takes more"
        )
    if status:
        return f"the hub {constants.ENDPOINT} answers with an error (status {status})", (
            "try later, name a mirror by HF_ENDPOINT"
        )
    said = f"{type(error).__name__}: {brief(str(error).strip())}"
    return f"the hub {constants.ENDPOINT} cannot be reached ({said})", (
        "check the network, name a mirror by HF_ENDPOINT"
    )


def _branches(hub: Any, name: str) -> str:
    """Returns the branches and tags of a repository as text, '' if they are not to be had."""
    try:
        refs = hub.HfApi().list_repo_refs(name)
    except Exception:  # it only helps
        return ""
    return f"; there are: {_listed([ref.name for ref in (*refs.branches, *refs.tags)])}"
