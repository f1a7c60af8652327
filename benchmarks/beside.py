"""Runs a server in its own process, so that its CPU and memory are not measured."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def beside(serve: Callable[..., None], *arguments: Any) -> Iterator[str]:
    """The address that `serve` sends on the connection that it is given first; the process ends with the context."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, *arguments), daemon=True)
    process.start()
    there.close()  # so that a server that dies is noticed here
    try:
        yield str(here.recv())
    finally:
        process.terminate()
        process.join()
