"""The engine's loop: wave by wave the source states and prompts, then each group until its cells are done."""

import gc
import re
from collections.abc import Iterator

import psutil
import torch

from patchscopes.compute import compute_of
from patchscopes.engine.group import GroupRun
from patchscopes.engine.prompts import RunPrompts
from patchscopes.engine.states import States
from patchscopes.errors import OutOfMemoryError
from patchscopes.foreign import is_memory
from patchscopes.mappings import Transfer
from patchscopes.models import Model, calm
from patchscopes.plan import Plan, Wave
from patchscopes.spec import Result

# What oneDNN says of whatever it could not do, a dtype that it does not take as well as memory that is not there. Of a
# "primitive descriptor" it says so before it asks for any memory.
NO_REASON = re.compile(r"could not (create|execute) a primitive(?! descriptor)|could not create a memory object")


class Engine:
    """Runs a Plan in batches. Its tokens are those of the reference runner (rule 9)."""

    def __init__(self, model: Model | Transfer) -> None:
        self.transfer = Transfer.of(model)
        self.model = self.transfer.target

    def run(self, plan: Plan) -> Iterator[Result]:
        """Yield one Result per cell as texts end. Raises OutOfMemoryError where one row alone does not fit."""
        for wave in plan.waves:
            yield from self._run_wave(plan, wave)

    def _run_wave(self, plan: Plan, wave: Wave) -> Iterator[Result]:
        compute = compute_of(self.model)
        try:
            with calm():
                states = States(self.transfer, wave.source_batches)
                prompts = RunPrompts(self.model, compute, wave.prompts, tokens_at_once=wave.prompt_tokens)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error, plan.cost.peak_bytes):
                raise
            raise self._refused("the wave's source states and prompts", plan, error) from error
        for group in wave.groups:
            run = GroupRun(self.model, compute, plan, group)
            while not run.done:
                try:
                    with calm():
                        results = list(run.step(states, prompts))
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error, plan.cost.peak_bytes):
                        raise
                    if not run.halve():
                        raise self._refused("one row at a time", plan, error) from error
                    self._release(error)
                    continue
                yield from results

    def _release(self, error: BaseException) -> None:
        """Let go of what failed: half as many rows begin again, and come to the same results."""
        # The error's traceback holds the tensors of the pass that failed.
        error.__traceback__ = None
        gc.collect()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _refused(self, what: str, plan: Plan, error: BaseException) -> OutOfMemoryError:
        """The error, with the figures, where not even the least of it fits."""
        free = 2 * default_memory_bytes(self.model.device)
        return OutOfMemoryError(
            f"out of memory with {what} on {self.model.device}, where {free / 2**20:,.0f} MiB are free; the plan needs "
            f"{plan.cost.peak_bytes / 2**20:,.0f} MiB beside the weights ({error}). Free memory, shorten prompts or "
            "max_new_tokens, or give a smaller --memory."
        )


def is_out_of_memory(error: BaseException, needed_bytes: int) -> bool:
    """Return whether memory ran out, on any device: where the error says so, or gives no reason and memory is short.

    Short is less than `needed_bytes`, the plan's peak.
    """
    if is_memory(error):
        return True
    return isinstance(error, RuntimeError) and NO_REASON.search(str(error)) is not None and _short(needed_bytes)


def _short(needed_bytes: int) -> bool:
    """Return whether so much memory cannot be had now: the machine has less, or a limit on the process forbids it."""
    if psutil.virtual_memory().available < needed_bytes:
        return True
    try:
        torch.empty(needed_bytes, dtype=torch.uint8, device="cpu")  # only asked for: no page of it is touched
    except (MemoryError, RuntimeError):
        return True
    return False


def default_memory_bytes(device: torch.device) -> int:
    """Half of what is free on `device` now: the budget where none is given."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free // 2
    return int(psutil.virtual_memory().available) // 2
