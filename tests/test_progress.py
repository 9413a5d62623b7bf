"""`track`: with rich, with tqdm and with neither; on a terminal, as a pipe, and interrupted."""

from __future__ import annotations

import fcntl
import io
import itertools
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from helpers import call_traced, hold, sampled

from primitive_jobs import (
    JobError,
    JobPool,
    PrimitiveJob,
    ResultTimeoutError,
    progress,
    report,
    track,
)
from primitive_jobs._bars import state as pace
from primitive_jobs._bars import views

PATIENCE = 30.0  # s

# What is hidden is not there for `import`: no test replaces a part of rich or tqdm.
HIDE = {"rich": (), "tqdm": ("rich",), "lines": ("rich", "tqdm")}
PREFACE = """
import sys, time, threading, os
from pathlib import Path
for name in sys.argv[1].split(",") if sys.argv[1] else ():
    sys.modules[name] = None
go = Path(sys.argv[2])
from primitive_jobs import JobPool, track

def hold(n):
    while not go.exists():
        time.sleep(0.01)
    return n

def fail(n):
    raise ValueError(n)
"""

SWEEP = """
with JobPool(1) as pool:
    jobs = [pool.submit(pow, n, 2) for n in range(10)] + [pool.submit(fail, 3)]
    gone = pool.submit(hold, 1)
    gone.cancel()
    for job in track([*jobs, gone], "a [red] {sweep}\\n\\x1b"):
        if job.done():
            print("result", job.result())
streams = (sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__)
print("end", *streams, [t.name for t in threading.enumerate()])
"""

WAITING = """
with JobPool(2) as pool:
    jobs = [pool.submit(hold, n) for n in range(2)]
    try:
        print("begun", flush=True)
        for job in track(jobs, "sweep"):
            pass
    except KeyboardInterrupt:
        print("interrupted", [job.in_final_state() for job in jobs], flush=True)
        print(*[job.result() for job in jobs])
"""

RAISING = """
pool = JobPool(1)
jobs = [pool.submit(pow, n, 2) for n in range(4)]
loop = track(jobs, "sweep")
sys.held = [loop]
sys.held.append(sys.held)  # it is there to the last
for job in loop:
    raise RuntimeError("of the body")
"""

DROPPED = """
with JobPool(1) as pool:
    jobs = [pool.submit(pow, n, 2) for n in range(4)]
    for job in track(jobs, "outer"):
        for inner in track(jobs, "inner"):
            pass
        break
    print("dropped", sys.stdout is sys.__stdout__, threading.active_count() > 1)
    for job in track(jobs, "nothing", disable=True):
        pass
    for job in track([], "empty"):
        pass
    print(threading.active_count() == 7)  # the pool's, the watcher for trackers and this one
"""


class Terminal:
    """A script whose stderr is a pseudo-terminal, and its stdout too or not."""

    def __init__(
        self, code: str, view: str, folder: Path, *, both: bool, size: tuple[int, int] = (24, 100)
    ) -> None:
        self.go = folder / "go"
        script = folder / "script.py"
        script.write_text(PREFACE + code)
        self._fd, far = pty.openpty()
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(script), ",".join(HIDE[view]), str(self.go)],
            stdout=far if both else subprocess.PIPE,
            stderr=far,
            # The size is the terminal's: rich believes these variables more.
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "", "LINES": ""},
            start_new_session=True,
        )
        os.close(far)
        self.shown = ""

    def read_until(self, text: str | None) -> None:
        """Read what is shown, until it has a text, or to its end."""
        while text is None or text not in self.shown:
            assert select.select([self._fd], [], [], PATIENCE)[0], self.shown
            try:
                part = os.read(self._fd, 65536)
            except OSError:  # nobody has the other end any more
                part = b""
            if not part:
                assert text is None, self.shown
                return
            self.shown += part.decode()

    def end(self, code: int = 0) -> str:
        """Wait for the script's end; return what it printed elsewhere."""
        self.read_until(None)
        out, _ = self.process.communicate(timeout=PATIENCE)
        os.close(self._fd)
        assert self.process.returncode == code, self.shown
        hidden, visible = self.shown.rfind("\x1b[?25l"), self.shown.rfind("\x1b[?25h")
        assert visible >= hidden, "the cursor is there"
        assert plain(self.shown).endswith("\n") or not self.shown
        return (out or b"").decode()


def plain(text: str) -> str:
    """Without colours and cursors."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def run(code: str, view: str, folder: Path) -> tuple[str, str]:
    """Run a script with pipes; return what came out of both."""
    script = folder / "script.py"
    script.write_text(PREFACE + code)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), ",".join(HIDE[view]), str(folder / "go")],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("view", HIDE)
def test_a_pipe_gets_plain_lines(view: str, tmp_path: Path) -> None:
    out, err = run(SWEEP, view, tmp_path)
    assert out.splitlines()[-1] == "end True True ['MainThread']"
    assert sorted(out.splitlines()[:-1]) == sorted(f"result {n * n}" for n in range(10))
    assert re.fullmatch(
        r"a \[red\] \{sweep\}: 12/12, 1 failed, 1 cancelled(, .*/s)?, in 0:0\d\n", err
    )


@pytest.mark.parametrize("view", HIDE)
def test_a_terminal_beside_a_pipe(view: str, tmp_path: Path) -> None:
    terminal = Terminal(SWEEP, view, tmp_path, both=False)
    out = terminal.end()
    assert out.splitlines()[-1] == "end True True ['MainThread']"
    assert len(out.splitlines()) == 11
    assert "result" not in terminal.shown
    last = plain(terminal.shown).rstrip().splitlines()[-1]
    assert "a [red] {sweep}" in last
    assert "12/12, 1 failed, 1 cancelled" in last
    drawn = {"rich": "━━━━━", "tqdm": "100%|█████", "lines": ""}[view]
    assert drawn in last
    assert ("\r" in terminal.shown.replace("\r\n", "")) == (view != "lines")


@pytest.mark.parametrize("view", ["rich", "tqdm"])
def test_a_terminal_of_unknown_size(view: str, tmp_path: Path) -> None:
    terminal = Terminal(SWEEP, view, tmp_path, both=False, size=(0, 0))
    terminal.end()
    assert "12/12, 1 failed, 1 cancelled" in terminal.shown


@pytest.mark.parametrize("view", ["rich", "tqdm"])
def test_what_the_body_prints_is_above_the_bar(view: str, tmp_path: Path) -> None:
    terminal = Terminal(SWEEP, view, tmp_path, both=True)
    terminal.end()
    lines = [line.rsplit("\r", 1)[-1].strip() for line in plain(terminal.shown).split("\r\n")]
    assert sum(line.startswith("result ") for line in lines) == 10
    assert "end True True ['MainThread']" in lines


@pytest.mark.parametrize("view", ["rich", "tqdm"])
def test_running_jobs_are_told_of_while_none_ends(view: str, tmp_path: Path) -> None:
    terminal = Terminal(WAITING, view, tmp_path, both=False)
    terminal.read_until("0/2, 2 running")
    assert terminal.shown.count("\x1b[?25l") <= terminal.shown.count("\x1b[?25h"), "a cursor"
    terminal.go.touch()
    assert terminal.end() == "begun\n"
    assert "2/2" in terminal.shown


@pytest.mark.parametrize("view", HIDE)
def test_ctrl_c_while_it_waits(view: str, tmp_path: Path) -> None:
    terminal = Terminal(WAITING, view, tmp_path, both=False)
    assert terminal.process.stdout is not None
    assert terminal.process.stdout.readline() == b"begun\n"
    if view != "lines":  # which shows nothing yet
        terminal.read_until("2 running")
    os.kill(terminal.process.pid, signal.SIGINT)
    first = terminal.process.stdout.readline()
    assert first == b"interrupted [False, False]\n"
    terminal.go.touch()
    assert terminal.end() == "0 1\n"
    assert "Traceback" not in terminal.shown


@pytest.mark.parametrize("view", ["rich", "tqdm"])
def test_a_body_that_raises(view: str, tmp_path: Path) -> None:
    terminal = Terminal(RAISING, view, tmp_path, both=True)
    terminal.end(1)
    lines = [line.rsplit("\r", 1)[-1].strip() for line in plain(terminal.shown).split("\r\n")]
    assert "Traceback (most recent call last):" in lines
    assert "RuntimeError: of the body" in lines


@pytest.mark.parametrize("view", ["rich", "tqdm"])
def test_a_loop_in_a_loop_that_is_left_early(view: str, tmp_path: Path) -> None:
    terminal = Terminal(DROPPED, view, tmp_path, both=False)
    assert terminal.end() == "dropped True True\nTrue\n"
    assert "outer" in terminal.shown
    assert not re.search("inner|nothing|empty", terminal.shown)


# --- in this process, where stderr is no terminal -------------------------------------------------


@pytest.fixture
def pool() -> Iterator[JobPool]:
    with JobPool(2) as made:
        yield made
        made.cancel_all()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_it_yields_as_as_completed(pool: JobPool, capsys: pytest.CaptureFixture[str]) -> None:
    with JobPool(1) as other:
        jobs = [where.submit(pow, n, 2) for n in range(3) for where in (pool, other)]
        got = list(track((job for job in [*jobs, *jobs]), "of two pools"))
    assert len(got) == 6
    assert set(got) == set(jobs)
    assert list(track([])) == []
    assert list(track(iter(jobs[:1]), disable=True)) == jobs[:1]
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"of two pools: 6/6.*\n", err)


def test_it_checks_at_once(pool: JobPool) -> None:
    with pytest.raises(JobError, match="was not submitted"):
        track([PrimitiveJob(pow, 2, 3)])


def test_timeout(pool: JobPool, capsys: pytest.CaptureFixture[str]) -> None:
    quick, slow = pool.submit(pow, 2, 3), pool.submit(time.sleep, 600)
    jobs: list[PrimitiveJob[Any]] = [quick, slow]
    wait_for(lambda: quick.done() and slow.running())  # or the time may be over before
    loop = track(jobs, timeout=1.0)
    assert next(loop) is quick
    with pytest.raises(ResultTimeoutError, match="1 of 2 jobs are not final"):
        next(loop)
    assert "jobs: 1/2, 1 running" in capsys.readouterr().err
    assert not slow.in_final_state()
    assert list(track([quick], timeout=0, disable=True)) == [quick]


def test_it_is_true_after_a_long_body(
    pool: JobPool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views._Lines, "pause", 0.0)
    monkeypatch.setattr(progress, "_SHARE", float("inf"))  # it is time again at once
    jobs = [pool.submit(pow, n, 2) for n in range(5)]
    bodies = 0
    for _ in track(jobs, "sweep"):
        wait_for(lambda: all(job.in_final_state() for job in jobs))
        bodies += 1
        if bodies == 2:  # of five, two were yielded
            assert "sweep: 5/5" in capsys.readouterr().err
    assert bodies == 5


def test_a_job_that_was_yielded_is_let_go(pool: JobPool) -> None:
    dropped: list[weakref.ref[Any]] = []
    jobs = (pool.submit(pow, n, 2) for n in range(4))
    for job in track(jobs):
        if dropped:
            wait_for(lambda: dropped[-1]() is None)
        dropped.append(weakref.ref(job))
        del job


def test_no_thread_and_nothing_to_be_done_at_exit(pool: JobPool) -> None:
    pool.submit(pow, 2, 3).result(PATIENCE)
    threads = threading.active_count()
    loop = track([pool.submit(pow, n, 2) for n in range(4)])
    next(loop)
    assert threading.active_count() == threads
    assert len(progress._open) == 1
    del loop
    assert not progress._open


def test_the_text_shrinks_with_the_room() -> None:
    state = pace.State("sweep", 100)
    state.since -= 10
    state.final, state.failed, state.cancelled, state.running = 50, 2, 1, 3
    state.ran = 50
    assert state.text() == "50/100, 2 failed, 1 cancelled, 3 running, 5.0/s, 0:10 left"
    assert state.text(59) == "50/100, 2 failed, 1 cancelled, 3 running, 5.0/s, 0:10 left"
    assert state.text(51) == "50/100, 2 failed, 1 cancelled, 3 running, 0:10 left"
    lengths = []
    for room in range(70, 0, -1):
        text = state.text(room)
        assert text.startswith("50/100")
        assert len(text) <= room or text == "50/100"
        lengths.append(len(text))
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] == len("50/100")
    state.before = 50  # none has ended since: there is no rate, and no time left to be told
    assert state.text(39) == "50/100, 2 failed, 1 cancelled"


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (250.0, "250/s"),
        (5.0, "5.0/s"),
        (1 / 6, "10.0/min"),
        (1 / 90, "40.0/h"),
        (1 / 7200, "0.5/h"),
    ],
)
def test_the_rate_is_a_rate(rate: float, text: str) -> None:
    assert pace.rate_text(rate) == text


def test_what_is_left_follows_from_jobs_that_ran(pool: JobPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    running = [pool.submit(hold, gate) for _ in range(2)]
    queued = [pool.submit(hold, gate) for _ in range(6)]
    unsendable = pool.submit(threading.Lock)
    unsent = pool.submit(id, threading.Lock())
    jobs: list[PrimitiveJob[Any]] = [*running, *queued, unsent]
    meter = progress._Meter("sweep", jobs)
    wait_for(lambda: all(job.running() for job in running))
    for job in queued[:4]:
        assert job.cancel()
    assert unsent.exception(PATIENCE) is not None
    state = meter._look()
    assert (state.final, state.cancelled, state.failed) == (5, 4, 1)
    assert re.fullmatch(r"5/9, 1 failed, 4 cancelled, 2 running", str(state))  # nothing ran yet
    gate.touch()
    for job in [*running, *queued[4:]]:
        job.result(PATIENCE)
    assert unsendable.exception(PATIENCE) is not None  # it ran: its result is at fault
    state = meter._look()
    assert state.ran == 4
    state.final -= 2  # as if two of them were still to come
    state.since = time.monotonic() - 10
    assert re.search(r"2[34]\.\d/min, 0:05 left$", str(state)), str(state)
    assert pace.ran(unsendable)
    assert not pace.ran(unsent)


PRINTING = """
def speak(n):
    while not (go.parent / f"spoke{n - 1}" if n else go).exists():  # one does not cut in on another
        time.sleep(0.01)
    print("out of job", n, flush=True)
    (go.parent / f"spoke{n}").touch()
    while not (go.parent / "end").exists():
        time.sleep(0.01)

with JobPool(2) as pool:
    for job in track([pool.submit(speak, n) for n in range(2)], "sweep"):
        print("body")
"""


def screen(shown: str, columns: int) -> list[str]:
    """What a terminal of so many columns makes of it: without scrolling and other effects."""
    rows: list[list[str]] = [[]]
    row = column = 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\s\S]", shown):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
        elif part.startswith("\x1b"):
            if part.endswith("K"):
                rows[row] = []
            assert part[-1] in "Kmlh", part
        else:
            if column == columns:  # it wraps with the character that finds no room, not before
                row, column = row + 1, 0
            rows += [[] for _ in range(row + 1 - len(rows))]
            line = rows[row]
            line += " " * (column + 1 - len(line))
            line[column] = part
            column += 1
        rows += [[] for _ in range(row + 1 - len(rows))]
    return ["".join(line).rstrip() for line in rows]


@pytest.mark.parametrize("view", ["rich", "tqdm"])
def test_what_a_job_prints_has_a_line_of_its_own(view: str, tmp_path: Path) -> None:
    terminal = Terminal(PRINTING, view, tmp_path, both=True)
    terminal.read_until("0/2, 2 running")
    terminal.go.touch()
    wait_for(lambda: all((tmp_path / f"spoke{n}").exists() for n in range(2)))
    (tmp_path / "end").touch()
    terminal.end()
    lines = screen(terminal.shown, 100)
    spoken = [line for line in lines if "out of" in line]
    assert sorted(spoken) == ["out of job 0", "out of job 1"], lines
    assert lines.count("body") == 2, lines
    assert all(line.startswith(("sweep", "out of job", "body")) for line in lines if line), lines
    assert "2/2" in lines[-2]


# --- over a map -----------------------------------------------------------------------------------

MAPPING = """
def double(n, gate):
    while n > 1 and not gate.exists():
        time.sleep(0.01)
    return 2 * n

with JobPool(2) as pool:
    for kind, numbers in ("range", range(4)), ("generator", (n for n in range(4))):
        call = lambda n, gate=go.with_name(kind): double(n, gate)
        print(kind, *track(pool.map(call, numbers, chunksize=1), kind))
"""


@pytest.mark.parametrize("view", HIDE)
def test_a_map_is_shown(view: str, tmp_path: Path) -> None:
    terminal = Terminal(MAPPING, view, tmp_path, both=False)
    kinds = {"range": "2/4, 2 running", "generator": " 2, 2 running"}
    for kind, shown in kinds.items():
        if view != "lines":
            terminal.read_until(shown)
        (tmp_path / kind).touch()
    assert terminal.end() == "range 0 2 4 6\ngenerator 0 2 4 6\n"
    lines = plain(terminal.shown).splitlines()
    for kind in kinds:
        last = [line for line in lines if kind in line][-1]
        assert re.search(r"4/4, .*in 0:0\d", last), last


def test_a_map_that_is_tracked_is_as_it_was(
    pool: JobPool, capsys: pytest.CaptureFixture[str]
) -> None:
    for disable in (False, True):
        assert list(track(pool.map(abs, range(-20, 0)), disable=disable)) == [*range(20, 0, -1)]
        assert list(track(pool.map(abs, []), disable=disable)) == []
        assert sorted(track(pool.map(abs, [-2, 3], ordered=False), disable=disable)) == [2, 3]
    out, err = capsys.readouterr()
    assert out == ""
    assert re.match(r"jobs: 20/20, .*\njobs: 0/0, in 0:00\njobs: 2/2, ", err)
    loop = track(pool.map(divmod, [4, 1], [2, 0]), disable=True)
    assert next(loop) == (2, 0)
    with pytest.raises(ZeroDivisionError):
        next(loop)
    assert list(loop) == []


def test_a_tracked_map_that_is_left_is_cancelled(pool: JobPool, tmp_path: Path) -> None:
    results = pool.map(hold, [tmp_path / "never"] * 3, chunksize=1)
    loop = track(results, timeout=0.2, disable=True)
    with pytest.raises(ResultTimeoutError, match=r"not all there after 0\.2 s"):
        next(loop)
    wait_for(lambda: not pool.jobs())
    (tmp_path / "there").touch()
    gates = [tmp_path / "there", tmp_path / "never"]
    loop = track(pool.map(hold, gates, [1, 2], chunksize=1))
    assert next(loop) == 1
    assert len(progress._open) == 1
    del loop
    assert not progress._open
    wait_for(lambda: not pool.jobs())


def test_a_result_of_a_tracked_map_is_let_go(pool: JobPool) -> None:
    dropped: list[weakref.ref[Any]] = []
    for value in track(pool.map(set, [[1], [2], [3]])):
        if dropped:
            assert dropped[-1]() is None
        dropped.append(weakref.ref(value))
        del value
    assert len(dropped) == 3


def test_how_many_calls_a_map_will_make(pool: JobPool) -> None:
    class Odd:
        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            raise StopIteration

        def __length_hint__(self) -> int:
            raise LookupError

    many = range(30_000)  # more than are taken ahead
    for iterables, total in (
        ((many,), 30_000),
        ((list(many), itertools.repeat(2)), 30_000),
        ((many, itertools.count()), 30_000),
        ((many, [1, 2, 3]), 3),
        ((many, itertools.repeat(2, 5)), 5),
        (((n for n in many),), None),
        ((itertools.count(),), None),
        ((Odd(),), None),
        ((), 0),
    ):
        results = pool.map(max, *iterables) if len(iterables) != 1 else pool.map(abs, *iterables)
        assert results._progress.total() == total
        shown = "" if total is None else f" of {total}"
        assert re.fullmatch(rf"<MapResults: \d+{shown} calls have returned>", repr(results))
        results.close()


def test_a_prompt_appears_above_a_bar_when_it_is_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    from tqdm.std import tqdm

    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # or there is a thread
    shown, drawn = io.StringIO(), io.StringIO()
    with tqdm(total=3, file=drawn) as bar:
        above = views._Above(shown, bar)
        print("a line", file=above)
        print("Continue? ", end="", file=above)
        assert shown.getvalue() == "a line\n"
        above.flush()
        assert shown.getvalue() == "a line\nContinue? "


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return not self.closed


def have_only(view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for hidden in HIDE[view]:
        names = [name for name in sys.modules if name.partition(".")[0] == hidden]
        for name in (hidden, *names):
            monkeypatch.setitem(sys.modules, name, None)


class WriteOnly:
    """What some programs put in the place of a stream."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.fixture
def streams() -> Iterator[Callable[[Any, Any], None]]:
    """Sets stdout and stderr; `monkeypatch` and the like would see what a bar puts there."""
    before = sys.stdout, sys.stderr

    def put(out: Any, err: Any) -> None:
        sys.stdout, sys.stderr = out, err

    yield put
    sys.stdout, sys.stderr = before


@pytest.mark.parametrize("view", HIDE)
def test_streams_of_any_kind(
    view: str,
    pool: JobPool,
    streams: Callable[[Any, Any], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    have_only(view, monkeypatch)
    odd: list[Callable[[], Any]] = [closed, WriteOnly, lambda: None, Screen]
    for make_out in odd:
        for make_err in odd:
            out, err = make_out(), make_err()
            streams(out, err)
            assert [job.result() for job in track([pool.submit(pow, 2, 3)])] == [8]
            assert (sys.stdout, sys.stderr) == (out, err)
            assert not progress._drawing
            if isinstance(err, WriteOnly):
                assert re.fullmatch("jobs: 1/1.*\n", err.text)
            if isinstance(err, Screen):
                assert "1/1" in err.getvalue()
    assert not progress._open


@pytest.mark.parametrize("view", ["rich", "tqdm"])
def test_what_is_printed_stays_as_it_is(
    view: str, pool: JobPool, streams: Callable[[Any, Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    have_only(view, monkeypatch)
    out = Screen()
    streams(out, out if view == "rich" else Screen())
    for _ in track([pool.submit(pow, 2, 3)]):
        print("one ", end="")
        sys.stdout.writelines(["'two' 2\n", "three\n"])
        print("[/four] :smile: 'five'...", end="", flush=True)
    assert "one 'two' 2\n" in out.getvalue()
    assert "[/four] :smile: 'five'..." in out.getvalue()


def ctrl_c(call: Callable[[], object], place: int) -> bool:
    """Make a call with a Ctrl-C at its ``place``-th line in `progress`, or call in rich or tqdm.

    Not in `_follow`: it has places where no interpreter looks for signals, but a tracer can raise.
    """
    count = 0

    def step(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        code = frame.f_code
        ours = code.co_filename in (progress.__file__, views.__file__) and code.co_name != "_follow"
        name = frame.f_globals.get("__name__", "").partition(".")[0]
        if not ours and name not in ("rich", "tqdm"):
            return None
        count += 1
        if count == place:
            signal.raise_signal(signal.SIGINT)
        return step if ours else None

    call_traced(call, step)
    return count >= place


@pytest.mark.parametrize("view", ["rich", "tqdm"])
@sampled(47)
def test_ctrl_c_at_any_time_leaves_a_clean_terminal(
    view: str,
    stride: int,
    pool: JobPool,
    streams: Callable[[Any, Any], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    have_only(view, monkeypatch)
    jobs = [pool.submit(pow, n, 2) for n in range(2)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    place = 1
    try:
        while True:
            screen = Screen()
            streams(screen, screen)
            came_there = ctrl_c(lambda: list(track(jobs)), place)
            assert (sys.stdout, sys.stderr) == (screen, screen), place
            assert not progress._drawing, place
            assert not progress._open, place
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            shown = screen.getvalue()
            assert shown.count("\x1b[?25l") <= shown.count("\x1b[?25h"), place
            assert not plain(shown) or plain(shown).endswith("\n"), place
            if not came_there:
                break
            place += stride if place > 60 else 1
    finally:
        signal.signal(signal.SIGINT, before)
    assert place > 100


def test_a_second_ctrl_c_does_not_wait() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        with progress._Uninterrupted():
            signal.raise_signal(signal.SIGINT)
            assert came == []
            signal.raise_signal(signal.SIGINT)
            assert came == [signal.SIGINT]
        assert came == [signal.SIGINT] * 2
        signal.raise_signal(signal.SIGINT)
        assert came == [signal.SIGINT] * 3
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_terminal_that_is_gone_ends_the_bar_and_not_the_loop(
    pool: JobPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        pause = 0.0

        def open(self, state: object) -> None:
            pass

        def show(self, state: object) -> None:
            raise OSError(5, "Input/output error")

        close = show

    monkeypatch.setattr(progress, "find_views", lambda *_, **__: iter([Gone()]))
    jobs = [pool.submit(pow, n, 2) for n in range(5)]
    assert {job.result() for job in track(jobs)} == {0, 1, 4, 9, 16}
    assert not progress._open


def tells(gate: Path) -> None:
    report(0.5, "half way", x=1.5)
    hold(gate)


def test_parts_of_running_jobs_count_and_are_shown(pool: JobPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    jobs = [pool.options(name=f"run\n{n}").submit(tells, gate) for n in range(2)]
    jobs.append(pool.submit(hold, gate))
    meter = progress._Meter("sweep", jobs, details=True)
    wait_for(lambda: all(job.progress is not None for job in jobs[:2]))
    state = meter._look()
    assert state.details is not None
    assert (state.final, state.running, state.partial) == (0, 2, 1.0)
    assert state.reached() == 1.0
    state.since = time.monotonic() - 10
    assert str(state) == "0/3, 2 running, 6.0/min, 0:20 left"
    assert [detail.name for detail in state.details] == ["run 0", "run 1"]
    text = str(state.details[0])
    assert text.startswith("run 0: 50% half way, x=1.5, 0:0"), text
    gate.touch()
    for job in jobs:
        job.result(PATIENCE)
    assert meter._look().details == []


DETAILS = """
from primitive_jobs import JobPool, report, track

def tell(n, gate):
    report(0.25 + n / 100, "at work", step=n)
    while not gate.exists():
        time.sleep(0.01)
    return n

if __name__ == "__main__":
    gate = Path(sys.argv[2])
    with JobPool(4) as pool:
        jobs = [pool.options(name=f"run-{n}").submit(tell, n, gate) for n in range(4)]
        while any(job.progress is None for job in jobs):
            time.sleep(0.01)
        for job in track(jobs, "sweep", details=True):
            job.result()
"""


@pytest.mark.parametrize("view", HIDE)
def test_running_jobs_have_lines_of_their_own(view: str, tmp_path: Path) -> None:
    terminal = Terminal(DETAILS, view, tmp_path, both=True, size=(5, 100))
    if view == "rich":  # which has room for two of them
        terminal.read_until("and 3 more running")
        shown = plain(terminal.shown)
        assert re.search(r"run-0 .*at work, step=0, 0:0\d", shown)
        assert "run-2" not in shown
    terminal.go.touch()
    terminal.end()
    assert re.search(r"4/4.*in 0:0\d", plain(terminal.shown))


def test_plain_lines_have_them_too(
    pool: JobPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(views._Lines, "pause", 0.0)
    gate = tmp_path / "gate"
    job = pool.options(name="n").submit(tells, gate)
    wait_for(lambda: job.progress is not None)
    threading.Timer(2 * views.REFRESH, gate.touch).start()
    assert list(track([job], "sweep", details=True)) == [job]
    err = capsys.readouterr().err
    assert re.search(r"^  n: 50% half way, x=1.5, 0:0\d$", err, re.MULTILINE), err
