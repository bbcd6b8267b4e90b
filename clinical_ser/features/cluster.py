"""One function spread over a Ray cluster; needs the extra `clinical-ser[cluster]`.

One idea: a recording is one Ray task, and only a bounded number is under way. A task that ends its process fails alone; it is tried once more after
all others, as in `workers.py`, and then reported.

What the nodes need: this package in the same versions (checked for every row), the recordings under the same paths (shared storage; they are not
sent, so that no voice is left in an object store or its spill files), and the cache on that storage too, if one is used.
"""

import importlib
import importlib.util
import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from clinical_ser.errors import FeatureError, InvalidValueError
from clinical_ser.features.workers import Lost

J = TypeVar("J")
R = TypeVar("R")

UNDER_WAY_PER_CPU = 2
"""Tasks submitted for each processor of the cluster: one runs, one is there when it ends."""
KNOCK_S = 5.0
"""How long a cluster may take to accept a connection."""
_ADVICE = "Start one with `ray start --head` (if it asks for a token: RAY_AUTH_MODE=token), or leave the address out to use this machine alone."


def run_on_ray(
    function: Callable[[J], R], jobs: Sequence[J], *, address: str | None = None, at_once: int | None = None
) -> Generator[tuple[int, R | Lost]]:
    """Apply `function` to every job on a Ray cluster and yield (index, result) as they finish.

    Parameters
    ----------
    function
        Importable on every node.
    jobs
        Picklable; submitted as others finish, so that a long list costs the cluster no memory.
    address
        `auto` or an address joins a cluster that runs; None uses the one this process is in, or starts one on this machine until the last job.
    at_once
        The most jobs under way; None: as many as the cluster has processors, and a second row ready for each.

    Raises
    ------
    FeatureError
        Ray is not installed, or there is no cluster at the address.
    InvalidValueError
        The address is none.
    """
    if importlib.util.find_spec("ray") is None:
        raise FeatureError("Ray is not installed; install clinical-ser[cluster].")
    ray: Any = importlib.import_module("ray")  # two seconds, so only here

    with _cluster(ray, address, at_once):
        limit = at_once or UNDER_WAY_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
        # Ray gives a task of one processor one OMP thread. No retry by Ray: it would run beside the job that took the memory; ours comes last, alone.
        task = ray.remote(num_cpus=1, max_retries=0)(_apply)
        shared = ray.put(function)
        suspects: list[int] = []
        for index, answer in _spread(ray, task, shared, range(len(jobs)), jobs, limit):
            if isinstance(answer, Lost):
                suspects.append(index)
            else:
                yield index, answer
        yield from _spread(ray, task, shared, suspects, jobs, 1)


def _apply(function: Callable[[J], R], job: J) -> R:
    return function(job)


def _spread(ray: Any, task: Any, function: Any, indices: Iterable[int], jobs: Sequence[J], limit: int) -> Iterator[tuple[int, Any]]:
    """Keep `limit` jobs under way until all have been answered; a `Lost` for one whose process, or node, died."""
    waiting = deque(indices)
    under_way: dict[Any, int] = {}
    while waiting or under_way:
        while waiting and len(under_way) < limit:
            index = waiting.popleft()
            under_way[task.remote(function, jobs[index])] = index
        (done,), _ = ray.wait(list(under_way), num_returns=1)
        index = under_way.pop(done)
        try:
            yield index, ray.get(done)
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError) as error:
            yield index, Lost(f"measuring it ended the process twice ({type(error).__name__})")


@contextmanager
def _cluster(ray: Any, address: str | None, at_once: int | None) -> Iterator[None]:
    """Join a cluster, or start one on this machine, for the time of the block; one that this process is in already is left as it is."""
    if ray.is_initialized():
        yield
        return
    if address is not None:
        _knock(address)
    # No dashboard, no copying of workers' output, no change to the caller's logging. A cluster that `ray.init` starts sends no usage statistics
    # (unless Ray is a nightly build); for one that is joined, its operator has decided.
    own = {"num_cpus": at_once, "include_dashboard": False} if address is None else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, configure_logging=False, logging_level="error", **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise FeatureError(f"The Ray cluster could not be {'joined' if address else 'started'} ({type(error).__name__}). {_ADVICE}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Refuse an address where nobody answers: Ray 2.60 itself tries for 200 s and then ends the whole process."""
    named = os.environ.get("RAY_ADDRESS") if address == "auto" else address
    if named is None:
        return  # Ray looks for a cluster on this machine, and says at once if there is none
    host, _, port = named.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise InvalidValueError("Ray address", address, "`auto`, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()
    except OSError as error:
        raise FeatureError(f"No Ray cluster answers at the address ({type(error).__name__}). {_ADVICE}") from None
