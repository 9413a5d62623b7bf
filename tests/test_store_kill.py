"""What a program that is killed leaves in a store; and that one program at a time writes to it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import PATIENCE, ROOT, Script, script, until

from primitive_jobs import JobPool, JobStatus, StoreBusyError, SweepStore
from primitive_jobs.store.writer import Writer

POINTS = 100
# It tells each row as soon as it has it: from then on that must not be lost, nor run again.
SWEEP = f"""
import os, sys
from primitive_jobs import JobPool, SweepStore, job_rng

def simulate(x, folder):
    fd = os.open(os.path.join(folder, f"ran-{{x}}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, b"x")
    os.close(fd)
    drawn = float(job_rng().random())
    return drawn if x % 10 else bytes(300_000)

if __name__ == "__main__":
    folder, path = sys.argv[1:]
    with JobPool(2, seed=5) as pool, SweepStore(path) as store:
        sweep = store.function(simulate, ignore="folder").sweep(
            [(x, folder) for x in range({POINTS})], pool
        )
        print("stored", sweep.counts().stored, flush=True)
        for row in sweep:
            print("row", row.arguments["x"], flush=True)
        print("end", flush=True)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "sweep.py"
    file.write_text(SWEEP)
    return file


class Run:
    """A store, and what the programs that have written to it have told."""

    def __init__(self, program: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "ran").mkdir()
        self.path = folder / "results.db"
        self.arguments = str(program), str(folder / "ran"), str(self.path)
        self.told: set[int] = set()
        self._folder = folder / "ran"
        self.ended = False

    def times(self, x: int) -> int:
        """How often a point has run."""
        mark = self._folder / f"ran-{x}"
        return mark.stat().st_size if mark.exists() else 0

    def go(self, seconds: float, how: signal.Signals = signal.SIGKILL) -> None:
        """Have a program run, and end it after a while; then look what it has told."""
        before = {x: self.times(x) for x in self.told}
        with script(*self.arguments, new_session=True) as started:
            try:
                out, err = started.process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                started.process.send_signal(how)
                out, err = started.process.communicate(timeout=PATIENCE)
            started.assert_nothing_left()
        assert how is signal.SIGINT or not err, err
        lines = [line.split() for line in out.splitlines() if line]
        self.told |= {int(line[1]) for line in lines if line[0] == "row" and len(line) == 2}
        self.ended = ["end"] in lines
        for x, times in before.items():
            assert self.times(x) == times, f"point {x} ran again, though it was acknowledged"

    def rows(self) -> dict[int, Any]:
        """The rows, which hold what was told."""
        rows = [row for row in SweepStore(self.path).rows() if row.status is JobStatus.DONE]
        found = {row.arguments["x"]: row for row in rows}
        assert len(found) == len(rows), "one row each"
        assert set(found) >= self.told
        return found

    def results(self) -> dict[int, Any]:
        return {x: row.result for x, row in self.rows().items()}


def killed_until_it_ends(program: Path, folder: Path, moments: int, seed: int) -> int:
    """Kill programs at random moments, until one ends by itself; return how many were killed."""
    plain = Run(program, folder / "whole")
    began = time.monotonic()
    plain.go(PATIENCE)
    took = time.monotonic() - began
    assert plain.ended
    assert len(plain.told) == POINTS
    expected = plain.results()
    rng, kills, number = random.Random(seed), 0, 0
    while kills < moments:
        number += 1
        run = Run(program, folder / f"run{number}")
        while not run.ended and kills < moments:
            run.go(rng.uniform(0.2 * took, 0.9 * took))
            kills += not run.ended
            run.rows()
        run.go(PATIENCE)
        assert run.ended
        assert run.results() == expected
        kept = {path.name for path in Path(f"{run.path}.d").iterdir()}
        assert kept == files_of(run.path)
    return kills


def files_of(path: Path) -> set[str]:
    """The names of the files that rows have."""
    from primitive_jobs.store.database import Database

    return Database(str(path)).files()


@pytest.mark.local
def test_a_sweep_under_sigkill(program: Path, tmp_path: Path) -> None:
    assert killed_until_it_ends(program, tmp_path, 8, seed=random.randrange(10**6)) >= 8


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_sweep_under_200_sigkills(program: Path, tmp_path: Path) -> None:
    assert killed_until_it_ends(program, tmp_path, 200, seed=1) >= 200


@pytest.mark.local
def test_a_sweep_under_ctrl_c(program: Path, tmp_path: Path) -> None:
    run = Run(program, tmp_path / "run")
    for seconds in (0.5, 0.6, 0.4):
        run.go(seconds, signal.SIGINT)
        run.rows()
    run.go(PATIENCE)
    assert run.ended
    assert len(run.results()) == POINTS


@pytest.mark.local
def test_a_full_disk(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        source = """
            import logging, sys
            from pathlib import Path
            from primitive_jobs import JobPool, SweepStore

            logging.basicConfig(format="%(message)s", stream=sys.stdout)

            def block(n):
                return bytes([n % 256]) * 50_000

            folder = Path(sys.argv[1])
            (folder / "ballast").write_bytes(bytes(700_000))
            with JobPool(2) as pool, SweepStore(folder / "results.db") as store:
                sweep = store.function(block).sweep(range(12), pool)
                for n, row in enumerate(sweep):
                    print(n, row.status.name, flush=True)
        """
        file = tmp_path / "full.py"
        file.write_text("\n".join(line[12:] for line in source.splitlines()))
        with script(str(file), str(small)) as started:
            assert started.process.stdout is not None
            lines: list[str] = []
            while not lines or "cannot be written to now" not in lines[-1]:
                lines.append(started.process.stdout.readline())
                assert lines[-1], started.process.communicate()
            (small / "ballast").unlink()
            out, err = started.process.communicate(timeout=PATIENCE)
        assert not err, err
        told = [*lines, *out.splitlines()]
        assert sum("DONE" in line for line in told) == 12
        assert any("is written to again" in line for line in told)
        rows = list(SweepStore(small / "results.db").rows())
        assert [len(row.result) for row in rows] == [50_000] * 12
    finally:
        subprocess.run(["umount", str(small)], check=True)


# --- one program at a time -----------------------------------------------------------------------

HOLDER = """
import sys, time
from primitive_jobs import JobPool, SweepStore

def square(x):
    return x * x

with JobPool(1) as pool, SweepStore(sys.argv[1]) as store:
    store.function(square, version=1).sweep([1, 2], pool).results()
    print("holds it", flush=True)
    time.sleep(1000)
"""


def held(started: Script) -> None:
    assert started.process.stdout is not None
    line = started.process.stdout.readline()
    assert line == "holds it\n", started.process.communicate()


@pytest.mark.local
def test_a_second_program_is_refused_at_once(one: JobPool, tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    with script("-c", HOLDER, str(path)) as started, SweepStore(path) as store:
        held(started)
        function = store.function(abs, version=1)
        began = time.monotonic()
        with pytest.raises(StoreBusyError, match=rf"process {started.process.pid} on .*since"):
            function.sweep([1], one)
        assert time.monotonic() - began < 1
        assert len(list(store.rows())) == 2  # readers always may
        started.process.kill()
        started.process.wait(PATIENCE)
        assert function.sweep([-1], one).results() == [1]


@pytest.mark.local
def test_one_in_another_pid_namespace_is_refused(one: JobPool, tmp_path: Path) -> None:
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    tried = subprocess.run([*unshare, "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("no pid namespace may be made here")
    path = tmp_path / "results.db"
    process = subprocess.Popen(
        [*unshare, sys.executable, "-c", HOLDER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds it\n"
        with SweepStore(path) as store:
            function = store.function(abs, version=1)
            with pytest.raises(StoreBusyError, match=r"process \d+ on"):
                function.sweep([1], one)
            process.kill()
            process.wait(PATIENCE)
            until(lambda: can_write(store), "the end of all that was in there")
            assert function.sweep([-1], one).results() == [1]
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)


def can_write(store: SweepStore) -> bool:
    try:
        store.forget(keys=[])
    except StoreBusyError:
        return False
    return True


@pytest.mark.local
def test_an_end_without_a_with_block_writes_what_there_is(tmp_path: Path) -> None:
    source = """
import sys
from primitive_jobs import JobPool, SweepStore

def square(x):
    return x * x

pool, store = JobPool(2), SweepStore(sys.argv[1])
sweep = store.function(square, version=1).sweep(range(50), pool)
"""
    path = tmp_path / "results.db"
    with script("-c", source, str(path)) as started:
        assert started.finish() == (0, "", "")
    results = [row.result for row in SweepStore(path).rows() if row.status is JobStatus.DONE]
    assert sorted(results) == [x * x for x in range(50)]


@pytest.mark.local
def test_who_waits_on_a_row_gets_a_ctrl_c(tmp_path: Path) -> None:
    source = """
import os, signal, sys, threading, time
from primitive_jobs import JobPool, SweepStore

def sleep(x):
    time.sleep(1000)

with JobPool(1) as pool:
    try:
        with SweepStore(sys.argv[1]) as store:
            sweep = store.function(sleep, version=1).sweep([1, 2], pool)
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            for row in sweep:
                pass
    except KeyboardInterrupt:
        print(sweep.counts()._asdict())
"""
    with script("-c", source, str(tmp_path / "results.db")) as started:
        status, out, err = started.finish()
        assert (status, err) == (0, "")
        assert json.loads(out.replace("'", '"'))["cancelled"] == 2


# --- what may fail on the way --------------------------------------------------------------------


@pytest.mark.local
def test_a_commit_that_fails_loses_nothing(
    two: JobPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what was noted of its code: a row without that would not be found again."""
    real, calls = Writer._insert, [0]

    def insert(self: Any, connection: Any, entry: Any) -> Any:
        calls[0] += 1
        done = real(self, connection, entry)
        if calls[0] in (2, 3, 5):
            raise OSError(28, "No space left on device")
        return done

    monkeypatch.setattr(Writer, "_insert", insert)
    with SweepStore(tmp_path / "results.db") as store:
        sweep = store.function(abs, version=1).sweep(range(20), two)
        assert sweep.results() == list(range(20))
        assert len(list(store.rows())) == 20
