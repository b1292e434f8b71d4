"""Work spread over the cluster that is connected: one Ray task an item, a bounded number of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

Item = TypeVar("Item")

_TASKS_PER_SLOT = 2  # one runs, one waits, so that no slot is idle
_DEATHS = (WorkerCrashedError, NodeDiedError, OutOfMemoryError)


class Died:
    """What an item gives whose process died, by a signal or with its machine, in every try."""


DIED = Died()


def spread(
    submit: Callable[[Item], Any], take: Callable[[], Item | None], *, resource: str = "CPU"
) -> Iterator[tuple[Item, Any]]:
    """(item, result) of every item, as they are done; DIED for one whose process died.

    Args:
        submit: begins the Ray task of an item, which takes one `resource`; gives its reference.
        take: the next item, None where there is none now. It is asked again after each result, so that a result can
            lead to more items.
        resource: of which the cluster, as it is at the moment, says how many tasks run at once.

    Raises:
        Exception: what a task raised, as it raised it.
    """
    running: dict[Any, Item] = {}
    try:
        while True:
            slots = max(1, int(ray.cluster_resources().get(resource, 0)))
            while len(running) < _TASKS_PER_SLOT * slots and (item := take()) is not None:
                running[submit(item)] = item
            if not running:
                return
            for done in ray.wait(list(running), num_returns=1)[0]:
                yield running.pop(done), _result(done)
    finally:
        for left in running:
            ray.cancel(left)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from None
    except _DEATHS:
        return DIED
