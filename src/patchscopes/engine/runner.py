"""The engine's loop: states, prefixes, then batch by batch prefill and decode."""

from collections.abc import Iterator, Mapping

import psutil
import torch
from torch import Tensor

from patchscopes.engine.batch import run_batch
from patchscopes.engine.capture import capture_states
from patchscopes.kv import Prefix, build_prefix
from patchscopes.models import Model
from patchscopes.plan import Plan
from patchscopes.spec import Result, State


class Engine:
    """Runs a Plan in batches. Its tokens are those of the reference runner (rule 9)."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def run(self, plan: Plan) -> Iterator[Result]:
        """Yield one Result per cell as texts end."""
        states: Mapping[State, Tensor] = capture_states(self.model, plan.source_batches)
        last_use = {prefix: n for n, batch in enumerate(plan.batches) for prefix in batch.prefixes}
        prefixes: dict[int, Prefix] = {}
        for n, batch in enumerate(plan.batches):
            for index in dict.fromkeys(batch.prefixes):
                if index not in prefixes:
                    prefixes[index] = build_prefix(self.model, plan.prefixes[index])
            yield from run_batch(self.model, plan, batch, prefixes=prefixes, states=states)
            prefixes = {index: prefix for index, prefix in prefixes.items() if last_use[index] > n}


def default_memory_bytes(device: torch.device) -> int:
    """Half of what is free on `device` now: the budget of one batch where none is given."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free // 2
    return int(psutil.virtual_memory().available) // 2
