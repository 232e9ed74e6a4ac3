"""Hub: files of a repository, fetched once and kept by huggingface_hub; every way that fails is said in one message."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from st.errors import StError


def is_repository(location: str) -> bool:
    """Whether this could be a repository's name, owner/name."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", location) is not None and not location.startswith(".")


def download(location: str, revision: str, wanted: Sequence[str], unwanted: Sequence[str], setting: str) -> Path:
    """A folder with the files of a repository that match; what is there already is not fetched again.

    wanted, unwanted: patterns of file names. setting: where the location came from (``model.checkpoint``), for
    messages. Raises StError where the repository is gated, private, unknown or out of reach.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    here = f"{setting} = {location!r}"
    try:
        return Path(
            snapshot_download(
                location, revision=revision or None, allow_patterns=list(wanted), ignore_patterns=list(unwanted)
            )
        )
    except GatedRepoError as error:
        raise StError(
            f"{here} asks for an agreement first",
            why=f"its owner decides who may download it: https://huggingface.co/{location}",
            fix="accept its terms there, then: hf auth login",
        ) from error
    except RevisionNotFoundError as error:
        raise StError(f"{here} has no revision {revision!r}", fix="set model.revision") from error
    except RepositoryNotFoundError as error:
        raise StError(
            f"{here} is neither a folder nor a repository that you can see", fix="if it is private: hf auth login"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise StError(
            f"{here} is not on this machine, and the hub does not answer",
            why=f"{type(error).__name__}: {str(error).splitlines()[0]}",
            fix=f"go online and repeat, or: hf download {location}",
        ) from error
