"""`Pool`: what programs that are written for `multiprocessing.Pool` take instead of that.

::

    apply_async ─► job ────────────► AsyncResult ─► callback, on the thread for callbacks
    map_async ───► jobs of chunks ─► AsyncResult ─┘
    imap ────────► a thread takes the items ─► jobs ─► ImapIterator

Below it is a `JobExecutor`: each call is a job, or is in one with its chunk. The names, the order
of arguments and what each of them means are those of the standard library; where something is
different, `Pool` says so.

It is an adapter, which may use all but the workers' inside. Its modules:

=======  ==================================================
pool     `Pool`
results  `AsyncResult`, the waiting, callbacks
imaps    `ImapIterator`, and the thread that takes its items
=======  ==================================================
"""

from __future__ import annotations

from .imaps import ImapIterator
from .pool import Pool
from .results import AsyncResult, TimeoutError  # noqa: A004 - as theirs

__all__ = ["AsyncResult", "ImapIterator", "Pool", "TimeoutError"]
