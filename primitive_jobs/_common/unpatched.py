"""Whether gevent or eventlet have patched what a pool's threads need."""

from __future__ import annotations

from .imported import imported

_NEEDED_OF_GEVENT = ("threading", "select", "subprocess", "queue")


def check_unpatched() -> None:
    """Raise `RuntimeError` where gevent or eventlet have patched what a pool needs."""
    gevent = imported("gevent.monkey")
    if gevent is not None:
        names = [name for name in _NEEDED_OF_GEVENT if gevent.is_module_patched(name)]
        if names:
            keep = ", ".join(f"{n}=False" for n in ("thread", "select", "subprocess", "queue"))
            raise _patched(
                "gevent", names, f"patch_all({keep})", "gevent.get_hub().threadpool.apply"
            )
    eventlet = imported("eventlet.patcher")
    if eventlet is not None:
        names = [name for name in ("thread", "select") if eventlet.is_monkey_patched(name)]
        if names:
            how = "monkey_patch(socket=True, time=True, os=True)"
            raise _patched("eventlet", names, how, "from eventlet import tpool; tpool.execute")


def _patched(library: str, names: list[str], patch: str, wait: str) -> RuntimeError:
    return RuntimeError(
        f"no pool can work here: {library} has patched {', '.join(names)}, so that a pool's "
        "threads would wait for one another for ever. What works: leave these modules as they are "
        f"({patch}), and wait for a job off the event loop ({wait}(job.result)); or use the pool "
        "in a process of its own that is not patched"
    )


__all__ = ["check_unpatched"]
