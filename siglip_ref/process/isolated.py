"""The user's process as it was: what a function under test may set, put back, also where it raises.

Put back are random states, NumPy's handling of floating-point errors, environment variables, the working directory,
warning filters; of Torch the number of threads, deterministic mode, default dtype and device, anomaly detection, and
the precision of products in float32. Not put back: signal handlers, files, processes that were started, the thread pool
between operations, and what an extension sets in memory of its own.
"""

import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import numpy as np

import siglip_ref


@contextmanager
def as_it_was() -> Iterator[None]:
    """See above. Torch's part where Torch is loaded."""
    environment, folder = dict(os.environ), os.getcwd()
    torch = torch_as_it_was() if "torch" in sys.modules else nullcontext()
    with random_states(), np.errstate(), warnings.catch_warnings(), torch:
        try:
            yield
        finally:
            if dict(os.environ) != environment:
                os.environ.clear()
                os.environ.update(environment)
            with suppress(OSError):
                if os.getcwd() != folder:
                    os.chdir(folder)


@contextmanager
def random_states() -> Iterator[None]:
    """Python's and NumPy's global random states, put back at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def torch_as_it_was() -> Iterator[None]:
    """Torch's global settings; its random states are forked where the device is known.

    In a forked process one thread: Torch's other threads stayed with its parent, and it would wait for them for ever.
    """
    before = [(read, write, read()) for read, write in _torch_settings()]
    try:
        if os.getpid() != siglip_ref._IMPORTED_IN:
            sys.modules["torch"].set_num_threads(1)
        yield
    finally:
        for read, write, value in before:
            if read() != value:
                write(value)


def one_torch_thread() -> None:
    """For calls on few numbers, where threads only wait for each other; `torch_as_it_was` puts them back."""
    torch = sys.modules.get("torch")
    if torch:
        torch.set_num_threads(1)


def _torch_settings() -> list[tuple[Callable[[], Any], Callable[[Any], object]]]:
    """How to read and how to write each."""
    import torch

    only_warn, cudnn = torch.is_deterministic_algorithms_warn_only_enabled(), torch.backends.cudnn
    return [
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_default_device, lambda device: torch.set_default_device(None if device.type == "cpu" else device)),
        (
            torch.are_deterministic_algorithms_enabled,
            lambda on: torch.use_deterministic_algorithms(on, warn_only=only_warn),
        ),
        (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (lambda: cudnn.deterministic, partial(setattr, cudnn, "deterministic")),
        (lambda: cudnn.benchmark, partial(setattr, cudnn, "benchmark")),
    ]
