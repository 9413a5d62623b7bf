"""Makes the pools of the suites that any `BasePool` has to pass: the option ``--pool`` says which.

    python -m pytest --pool other_pool:make -m "not local and not soak and not checkers" \\
        tests/test_cancel.py tests/test_limits.py ...

What is named there takes the arguments of `JobPool` and returns a pool. Tests with the marker
`local` need more than a `BasePool`: processes of this machine, what is private, methods of
`JobPool`'s own. `test_makers` has the list of the suites.
"""

from __future__ import annotations

import pkgutil
import weakref
from collections.abc import Callable
from typing import Any

from primitive_jobs import JobExecutor, JobPool

DEFAULT_KIND = "primitive_jobs:JobPool"
# Typed as the pool that it makes if nobody asks for another one.
MakePool = Callable[..., JobPool]
MakeExecutor = Callable[..., JobExecutor]


class Makers:
    """Makes pools of one kind, and executors over them.

    Args:
        kind: Where the kind is found, as "module:name".
    """

    def __init__(self, kind: str) -> None:
        self._kind: MakePool = pkgutil.resolve_name(kind)
        self._made: list[weakref.ref[JobPool]] = []  # a pool may be dropped by the test

    def pool(self, *args: Any, **options: Any) -> JobPool:
        pool = self._kind(*args, **options)
        self._made.append(weakref.ref(pool))
        return pool

    def executor(self, max_workers: int, **options: Any) -> JobExecutor:
        """An executor with a pool of its own, which is a `JobPool`, or over one of another kind."""
        if self._kind is JobPool:
            return JobExecutor(max_workers, **options)
        return JobExecutor(pool=self.pool(max_workers, **options))

    def close(self) -> None:
        """Shut down the pools that are still there."""
        for made in self._made:
            pool = made()
            if pool is not None:
                pool.shutdown(cancel=True)
