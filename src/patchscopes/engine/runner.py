"""The engine's loop: wave by wave the source states and prompts, then each group until its cells are done."""

import gc
from collections.abc import Iterator

import psutil
import torch

from patchscopes.compute import compute_of
from patchscopes.engine.group import GroupRun
from patchscopes.engine.prompts import RunPrompts
from patchscopes.engine.states import States
from patchscopes.errors import OutOfMemoryError
from patchscopes.models import Model
from patchscopes.plan import Plan, Wave
from patchscopes.spec import Result


class Engine:
    """Runs a Plan in batches. Its tokens are those of the reference runner (rule 9)."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def run(self, plan: Plan) -> Iterator[Result]:
        """Yield one Result per cell as texts end. Raises OutOfMemoryError where one row alone does not fit."""
        for wave in plan.waves:
            yield from self._run_wave(plan, wave)

    def _run_wave(self, plan: Plan, wave: Wave) -> Iterator[Result]:
        compute = compute_of(self.model)
        states = States(self.model, compute, wave.source_batches)
        prompts = RunPrompts(self.model, compute, wave.prompts)
        for group in wave.groups:
            run = GroupRun(self.model, compute, plan, group)
            while not run.done:
                try:
                    results = list(run.step(states, prompts))
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    self._halve(run, error)
                    continue
                yield from results

    def _halve(self, run: GroupRun, error: BaseException) -> None:
        """Go on with half as many rows at once; what had not ended begins again, with the same result."""
        n_rows = run.n_rows
        if not run.halve():
            raise OutOfMemoryError(
                f"out of memory with one row at a time on {self.model.device} ({error}); shorten the prompt or "
                "max_new_tokens, or free memory."
            ) from error
        # The error's traceback holds the tensors of the pass that failed.
        error.__traceback__ = None
        gc.collect()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        assert run.n_rows < n_rows


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        sign in str(error) for sign in ("DefaultCPUAllocator", "not enough memory", "can't allocate memory")
    )


def default_memory_bytes(device: torch.device) -> int:
    """Half of what is free on `device` now: the budget where none is given."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free // 2
    return int(psutil.virtual_memory().available) // 2
