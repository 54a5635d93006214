"""Turn what libraries raise while they load or run a model into one error of ours; let our own faults through.

Whose fault an error is, is read from its traceback: the first frame below our last one that does more than look up or
compute what it was given. Where that frame belongs to a library that loads and runs models, the error came out of the
model; where our own code is the innermost, or calls something else, it is ours and stays a traceback.

    ours → torch.nn.Module.__call__ → … → raise          theirs: the model ran
    ours → torch.nn.Module.__call__ → ours → raise       ours: a hook or a replacement of ours
    ours → a @ b, ours → torch.nn.functional.linear      ours: our arithmetic on what we were given
    ours → json, numpy, … → raise                        ours: no model there

A model that fails because *we* called it with nonsense looks like the first line. That cannot be told in general, so
guards stand only around whole steps (a load, a check, a template, the passes of a run), and the original error, with
its traceback, is the cause of ours.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType

from patchscopes.errors import ModelRunError, OutOfMemoryError, PatchscopesError

OURS = "patchscopes"
# Libraries that load, quantise, template or run models, and code that comes with a model. Others (most quantisers) are
# entered through these.
LIBRARIES = frozenset(
    {
        *("accelerate", "bitsandbytes", "gguf", "httpx", "huggingface_hub", "jinja2", "peft", "safetensors"),
        *("tokenizers", "torch", "torchao", "transformers", "transformers_modules"),
    }
)
# Parts of torch that only compute on what they are given: whoever called them answers for it.
ARITHMETIC = ("torch._tensor", "torch.functional", "torch.nn.functional", "torch.overrides", "torch.utils._contextlib")
# What Python itself and general libraries do for whoever calls them.
GENERAL = sys.stdlib_module_names | {"beartype", "filelock", "jaxtyping", "numpy", "pandas", "pyarrow", "scipy"}
# How attributes and entries are looked up: a name that is not there is the fault of whoever asked for it.
LOOK_UPS = frozenset({"__getattr__", "__getattribute__", "__getitem__"})
# Where a private module calls a hook of the caller's: it is the module that has called it.
HOOKS_OF_CALLERS = "patchscopes.models.tree"
# What allocators say: torch's on CPUs and on accelerators, and the C++ library's.
MEMORY_SIGNS = (
    *("out of memory", "can't allocate memory", "not enough memory", "defaultcpuallocator", "std::bad_alloc"),
    "cublas_status_alloc_failed",
)
LONGEST_REASON = 300


def is_foreign(error: BaseException) -> bool:
    """Return whether `error` came out of a library that loads or runs models, not out of our own code."""
    entry = _trail(error).entry
    return entry is not None and entry.f_code.co_name not in LOOK_UPS and _belongs(entry)


def is_ours(error: BaseException) -> bool:
    """Return whether our own code is the innermost of an error's traceback, but for what it looked up or computed."""
    trail = _trail(error)
    return trail.ours and (trail.entry is None or trail.entry.f_code.co_name in LOOK_UPS)


def is_memory(error: BaseException) -> bool:
    """Return whether `error` says that memory ran out."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(sign in str(error).lower() for sign in MEMORY_SIGNS)


def reason_of(error: BaseException) -> str:
    """Return what `error` says, in one line; its type where it says nothing."""
    said = " ".join(str(error).split()) or type(error).__name__
    # Of long messages (lists of all models, of all keys) the beginning says what is wrong.
    return said if len(said) <= LONGEST_REASON else f"{said[:LONGEST_REASON]}…"


@contextmanager
def explained(explain: Callable[[Exception], PatchscopesError]) -> Iterator[None]:
    """Raise what `explain` makes of an error of a library, with the original behind it; others pass as they are."""
    try:
        yield
    except PatchscopesError:
        raise
    except Warning:  # a warning that the user has turned into an error
        raise
    except Exception as error:
        if not is_foreign(error):
            raise
        raise explain(error) from error
    except BaseException as error:
        # A panic of a library written in Rust (tokenizers, safetensors) is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise explain(RuntimeError(str(error))) from error


@contextmanager
def running(model: str) -> Iterator[None]:
    """Guard the run of a model: what it raises becomes one ModelRunError that names `model`, or OutOfMemoryError."""

    def explain(error: Exception) -> PatchscopesError:
        if is_memory(error):
            return OutOfMemoryError(
                f"{model} ran out of memory: {reason_of(error)}. Free some, use shorter texts, or load with "
                'dtype="bfloat16" (--dtype).'
            )
        return ModelRunError(
            f"{model} fails when it is run: {type(error).__name__}{_place(error)}: {reason_of(error)} Run the model on "
            "the same text with transformers alone. If it fails there too, mend the model (its weights, config, hooks "
            "or remote code); if not, please report it."
        )

    with explained(explain):
        yield


@dataclass(frozen=True, slots=True)
class _Trail:
    """Of an error: whether it passed through our code, and the frame that our innermost code had entered, if any."""

    ours: bool
    entry: FrameType | None


def _trail(error: BaseException) -> _Trail:
    frames = [frame for frame in _frames(error.__traceback__) if not _serves(frame)]
    last = max((index for index, frame in enumerate(frames) if _top(frame) == OURS), default=-1)
    return _Trail(last >= 0, frames[last + 1] if last + 1 < len(frames) else None)


def _frames(traceback: TracebackType | None) -> Iterator[FrameType]:
    """Yield the frames of a traceback, the outermost first."""
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _module(frame: FrameType) -> str:
    """Return the module whose code runs; "" for generated code that does not say, such as a template."""
    return str(frame.f_globals.get("__name__") or "")


def _top(frame: FrameType) -> str:
    return _module(frame).partition(".")[0]


def _serves(frame: FrameType) -> bool:
    """Return whether a frame only does what it was asked, so that the frame above it answers for an error."""
    told = _module(frame) == HOOKS_OF_CALLERS and frame.f_code.co_name == "__call__"
    return told or _top(frame) in GENERAL or _module(frame) in ARITHMETIC


def _belongs(frame: FrameType) -> bool:
    """Return whether a frame is a library's: by its module, or a method of an object whose class derives from one."""
    if _top(frame) in LIBRARIES:
        return True
    bases = type(frame.f_locals.get("self")).__mro__
    return any(base.__module__.partition(".")[0] in LIBRARIES for base in bases)


def _place(error: BaseException) -> str:
    """Return the innermost place that an error came through, such as " in transformers.models.llama.modeling_llama"."""
    modules = [_module(frame) for frame in _frames(error.__traceback__) if _module(frame)]
    return f" in {modules[-1]}" if modules else ""
