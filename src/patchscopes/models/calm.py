"""What the caller has switched on around a call, and what passes run under all the same."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

DEVICES = ("cpu", "cuda", "mps", "xpu")


def _one_thread() -> None:
    """Have a forked child compute in one thread: the others stayed in its parent, and OpenMP would wait for them."""
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_thread)


@contextmanager
def calm() -> Iterator[None]:
    """Record no gradients, make ordinary tensors and compute in the dtypes given, whatever the caller has switched on.

    Autocast would compute in another dtype than the model has, and tensors made in inference mode could not be changed
    by a stream that goes on outside of it. All three are the thread's own: no other thread sees a difference.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.no_grad())
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
