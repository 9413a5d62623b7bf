"""A worker's own descriptors have high numbers: what a job does to low ones harms nothing."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

import pytest
from helpers import PATIENCE

from primitive_jobs import JobPool, WorkerDiedError
from primitive_jobs._worker import loop


def open_descriptors() -> dict[int, tuple[str, bool]]:
    """By number: what it is of, and whether a program inherits it."""
    found = {}
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # that of the folder itself
            number = int(entry.name)
            found[number] = str(entry.readlink()), os.get_inheritable(number)
    return found


def write_to_low_numbers() -> int:
    for number in range(3, 21):
        with contextlib.suppress(OSError):
            os.write(number, b"x" * 100)
    return os.getpid()


def close_low_numbers() -> int:
    os.closerange(3, 21)
    return os.getpid()


def replace_low_numbers() -> int:
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3, 21):
        os.dup2(null, number)
    return os.getpid()


def use_trackers() -> int:
    """What multiprocessing and loky have of the parent, they have still."""
    import multiprocessing

    lock = multiprocessing.get_context("spawn").Lock()  # registered with the tracker
    with lock:
        return os.getpid()


def test_a_job_finds_low_numbers_free(one: JobPool) -> None:
    found = one.submit(open_descriptors).result(PATIENCE)
    # libffi may have its own library open.
    assert not [
        name for number, (name, _) in found.items() if 2 < number < 60 and "ffi" not in name
    ]
    assert not [name for number, (name, inherited) in found.items() if inherited and number > 2]


@pytest.mark.parametrize("packets", [True, False], ids=["packets", "stream"])
def test_low_numbers_are_a_jobs_own(packets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from functools import partial

    from primitive_jobs._procs.process import WorkerConfig

    monkeypatch.setattr("primitive_jobs.pool.WorkerConfig", partial(WorkerConfig, packets=packets))
    large = bytes(1_000_000)
    with JobPool(1, spare_workers=0) as pool:
        pids = {
            pool.submit(do).result(PATIENCE)
            for do in (write_to_low_numbers, close_low_numbers, replace_low_numbers, use_trackers)
        }
        assert len(pids) == 1
        assert pool.submit(bytes, large).result(PATIENCE) == large
        error = pool.submit(os.abort).exception(PATIENCE)
        assert isinstance(error, WorkerDiedError)
        assert error.pid in pids
        assert error.stack is not None


def test_where_the_number_is_taken_or_too_high(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = [os.open(tmp_path, os.O_RDONLY) for _ in range(3)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        first, second = map(loop.out_of_reach, opened[:2])
        assert (first, second) == (199, 198)
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        os.set_inheritable(second, True)
        assert loop.out_of_reach(second) == second  # it is out of reach already
        opened[:2] = first, second
        assert not any(map(os.get_inheritable, opened))
        assert all(os.path.samestat(os.fstat(fd), tmp_path.stat()) for fd in opened)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in opened:
            os.close(fd)
