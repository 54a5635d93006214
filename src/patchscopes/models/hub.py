"""A Hugging Face hub id → the commit to load, asked for once, so that no network is an answer and not a wait."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, errors, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from patchscopes.errors import UnknownModelError
from patchscopes.foreign import explained, reason_of
from patchscopes.models.registry import REGISTRY

TIMEOUT_S = 10
# The base of what the hub's own HTTP client raises, whichever client this version of it uses.
NETWORK_ERROR: type[Exception] = vars(errors)["HTTPError"]
# What is fetched of an adapter: its config and weights, and the tokenizer that it was trained with.
OF_ADAPTERS = (
    "adapter_*",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
    "vocab*",
    "merges.txt",
)


@dataclass(frozen=True, slots=True)
class HubPlace:
    """Which commit to load; `local_only` where the hub did not answer and only what is on this disk can be had.

    `files` are the names of the repository's files, as far as they are known.
    """

    revision: str | None
    local_only: bool
    files: frozenset[str] = frozenset()


def locate(name: str, revision: str | None) -> HubPlace:
    """Ask the hub what `name` is. Raises UnknownModelError where it says that there is no such thing."""
    try:
        info = HfApi().model_info(name, revision=revision, timeout=TIMEOUT_S)
    except GatedRepoError as error:
        raise UnknownModelError(
            f"the model {name!r} is gated: accept its terms on its page and log in (hf auth login), then try again."
        ) from error
    except RevisionNotFoundError as error:
        raise UnknownModelError(f"the hub has {name!r}, but no revision {revision!r} of it.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UnknownModelError(not_known(name, "the hub has no such model, or you may not see it.")) from error
    except (HfHubHTTPError, NETWORK_ERROR, OSError):
        return HubPlace(revision, local_only=True, files=_cached(name, revision))
    return HubPlace(info.sha, local_only=False, files=frozenset(file.rfilename for file in info.siblings or ()))


def fetch_adapter(name: str, place: HubPlace) -> Path:
    """Return the folder of an adapter's files in the hub's cache, fetched first where the hub answers."""
    with explained(lambda error: UnknownModelError(not_known(name, reason_of(error)))):
        return Path(
            snapshot_download(
                name, revision=place.revision, allow_patterns=list(OF_ADAPTERS), local_files_only=place.local_only
            )
        )


def not_known(name: str, why: str) -> str:
    """What to say of a name that names nothing."""
    return (
        f"unknown model {name!r}: it is no registry name ({', '.join(REGISTRY)}) and no path, and as a Hugging Face "
        f"hub id it does not load: {why} Check the spelling and the network, or give a folder."
    )


def _cached(name: str, revision: str | None) -> frozenset[str]:
    """Return which files that tell adapters from models are in the hub's cache."""
    try:
        config = try_to_load_from_cache(name, "adapter_config.json", revision=revision)
    except HFValidationError:
        return frozenset()
    if not isinstance(config, str):
        return frozenset()
    return frozenset(path.name for path in Path(config).parent.iterdir())
