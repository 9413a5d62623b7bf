"""What a caller sees of an exception that a job raised: a last line of ours that explains itself.

And every argument of our frames has a value, since IPython shows those, and stumbles where one was
deleted.
"""

from __future__ import annotations

import asyncio
import inspect
import linecache
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
from helpers import PATIENCE, script

import primitive_jobs
from primitive_jobs import JobExecutor, JobPool, PrimitiveJob, as_completed, gather, race, track

PACKAGE = str(Path(primitive_jobs.__file__).parent)


def fail(number: int) -> None:
    raise ValueError(f"on purpose, {number}")


def awaited(job: PrimitiveJob[None]) -> None:
    async def wait() -> None:
        await job

    asyncio.run(wait())


WAYS: dict[str, Callable[[JobPool], object]] = {
    "result": lambda pool: pool.submit(fail, 1).result(PATIENCE),
    "await": lambda pool: awaited(pool.submit(fail, 1)),
    "gather": lambda pool: gather([pool.submit(fail, 1)]),
    "race": lambda pool: race([pool.submit(fail, 1)]),
    "map": lambda pool: list(pool.map(fail, [1])),
    "future": lambda pool: JobExecutor(pool=pool).submit(fail, 1).result(PATIENCE),
    "executor's map": lambda pool: list(JobExecutor(pool=pool).map(fail, [1])),
    "chunks": lambda pool: list(JobExecutor(pool=pool).map(fail, [1, 2], chunksize=2)),
}
TIMEOUTS: dict[str, Callable[[JobPool], object]] = {
    "result": lambda pool: pool.submit(time.sleep, 600).result(0),
    "gather": lambda pool: gather([pool.submit(time.sleep, 600)], timeout=0),
    "as_completed": lambda pool: list(as_completed([pool.submit(time.sleep, 600)], 0)),
    "track": lambda pool: list(track([pool.submit(time.sleep, 600)], timeout=0, disable=True)),
    "future": lambda pool: JobExecutor(pool=pool).submit(time.sleep, 600).result(0),
}


def frames_of_ours(error: BaseException) -> Iterator[tuple[FrameType, str]]:
    """Frames of the package in the traceback, with the line that each is at."""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_filename.startswith(PACKAGE):
            yield frame, linecache.getline(frame.f_code.co_filename, trace.tb_lineno).strip()
        trace = trace.tb_next


def check_arguments(error: BaseException) -> None:
    for frame, _ in frames_of_ours(error):
        shown = inspect.getargvalues(frame)
        assert set(shown.args) <= set(shown.locals), frame


def test_the_last_line_of_ours_explains_itself() -> None:
    with JobPool(1, spare_workers=0) as pool:
        for way, use in WAYS.items():
            with pytest.raises(ValueError, match="on purpose, 1") as caught:
                use(pool)
            assert "in fail" in str(caught.value.__cause__), way
            lines = [line for _, line in frames_of_ours(caught.value)]
            code, _, comment = lines[-1].partition("  # ")
            assert code in ("raise failure", "raise raised"), way
            assert "traceback" in comment, way
            assert "above" in comment, way  # where Python, IPython and pytest print the cause
            check_arguments(caught.value)


def test_arguments_are_there_when_the_time_is_over() -> None:
    with JobPool(1, spare_workers=0) as pool:
        pool.submit(time.sleep, 600)  # the others wait behind it
        for use in TIMEOUTS.values():
            with pytest.raises(TimeoutError) as caught:
                use(pool)
            check_arguments(caught.value)
        pool.cancel_all()


def test_in_ipython(tmp_path: Path) -> None:
    cells = tmp_path / "cells.py"
    cells.write_text(
        textwrap.dedent("""
            from IPython.core.interactiveshell import InteractiveShell
            from primitive_jobs import JobPool

            shell = InteractiveShell.instance()
            pool = JobPool(1)
            shell.user_ns["job"] = pool.submit(divmod, 1, 0)
            for mode in "Plain", "Context", "Verbose":
                shell.run_line_magic("xmode", mode)
                shell.run_line_magic("colors", "NoColor")
                shell.run_cell("job.result()")
                shell.run_cell("await job")
            pool.shutdown()
        """)
    )
    with script(str(cells), env={"IPYTHONDIR": str(tmp_path), "HOME": str(tmp_path)}) as started:
        status, out, err = started.finish()
    assert status == 0, err
    assert out.count("raise failure  # of the job") == 6, out
    assert out.count("PrimitiveJob.result(self") == 4
    assert "resolving" not in out + err
