"""A Hugging Face hub id → the commit to load, asked for once, so that no network is an answer and not a wait."""

from dataclasses import dataclass

from huggingface_hub import HfApi, errors
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from patchscopes.errors import UnknownModelError
from patchscopes.models.registry import REGISTRY

TIMEOUT_S = 10
# The base of what the hub's own HTTP client raises, whichever client this version of it uses.
NETWORK_ERROR: type[Exception] = vars(errors)["HTTPError"]


@dataclass(frozen=True, slots=True)
class HubPlace:
    """Which commit to load; `local_only` where the hub did not answer and only what is on this disk can be had."""

    revision: str | None
    local_only: bool


def locate(name: str, revision: str | None) -> HubPlace:
    """Ask the hub what `name` is. Raises UnknownModelError where it says that there is no such thing."""
    try:
        return HubPlace(HfApi().model_info(name, revision=revision, timeout=TIMEOUT_S).sha, local_only=False)
    except GatedRepoError as error:
        raise UnknownModelError(
            f"the model {name!r} is gated: accept its terms on its page and log in (hf auth login), then try again."
        ) from error
    except RevisionNotFoundError as error:
        raise UnknownModelError(f"the hub has {name!r}, but no revision {revision!r} of it.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UnknownModelError(not_known(name, "the hub has no such model, or you may not see it.")) from error
    except (HfHubHTTPError, NETWORK_ERROR, OSError):
        return HubPlace(revision, local_only=True)


def not_known(name: str, why: str) -> str:
    """What to say of a name that names nothing."""
    return (
        f"unknown model {name!r}: it is no registry name ({', '.join(REGISTRY)}) and no path, and as a Hugging Face "
        f"hub id it does not load: {why} Check the spelling and the network, or give a folder."
    )
