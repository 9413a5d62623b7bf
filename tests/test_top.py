"""`python -m primitive_jobs top` and `cancel`: the table, the keys, and programs in any state."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import PATIENCE, ROOT, Script, gone, hold, script, until
from visits import monitor_of

from primitive_jobs import JobPool, JobStatus
from primitive_jobs.__main__ import main
from primitive_jobs.monitor import protocol
from primitive_jobs.viewer import sockets
from primitive_jobs.viewer.keys import keys_in
from primitive_jobs.viewer.link import Link, LinkLost, Stranger
from primitive_jobs.viewer.screen import Screen
from primitive_jobs.viewer.sockets import Found
from primitive_jobs.viewer.table import Row, columns, cut, matches, ordered, plain, width_of
from primitive_jobs.viewer.watch import Pool, Program, Watch

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="sockets without a file"),
    pytest.mark.usefixtures("in_sight"),
]

# What a program under test runs: so many jobs that end when a file is there.
JOBS = """
import sys, time
from pathlib import Path
from primitive_jobs import JobPool

def job(gate):
    while not Path(gate).exists():
        time.sleep(0.01)

name, count, gate = sys.argv[1:]
with JobPool(2, spare_workers=0) as pool:
    jobs = [pool.options(name=f"{name} {n}").submit(job, gate) for n in range(int(count))]
    while not all(one.running() for one in jobs[:2]):
        time.sleep(0.01)
    print("ready", flush=True)
    for one in jobs:
        one.wait()
    print(sorted({str(one.status().name) for one in jobs}), flush=True)
"""


@contextlib.contextmanager
def program(name: str, count: int, gate: Path) -> Iterator[Script]:
    """A program with jobs; it ends when the gate is there."""
    with script("-c", JOBS, name, str(count), str(gate)) as started:
        assert started.process.stdout is not None
        assert started.process.stdout.readline() == "ready\n"
        yield started


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "primitive_jobs", *arguments],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
        cwd=ROOT,
    )


def told(pids: set[int]) -> list[dict[str, Any]]:
    """What `top --json` tells of these programs."""
    done = command("top", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return [each for each in json.loads(done.stdout)["programs"] if each["pid"] in pids]


# --- programs ------------------------------------------------------------------------------------


def test_three_programs_with_200_jobs(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with contextlib.ExitStack() as stack:
        names = ("alpha", "beta", "gamma")
        programs = [stack.enter_context(program(name, 200, gate)) for name in names]
        pids = {each.process.pid for each in programs}
        found = told(pids)
        assert {each["pid"] for each in found} == pids
        for seen in found:
            (pool,) = seen["pools"]
            assert (pool["counts"]["running"], pool["counts"]["queued"]) == (2, 198)
            states = [job["status"] for job in seen["jobs"]]
            assert states == ["RUNNING"] * 2 + ["QUEUED"] * protocol.MOST_QUEUED
            for job in seen["jobs"][:2]:
                assert job["load"]["memory"] > 1_000_000
                assert job["load"]["peak_memory"] >= job["load"]["memory"] / 2
                assert job["load"]["cpu_percent"] >= 0

        plain_text = command("top", "--once", "--filter", "beta 1")
        assert plain_text.returncode == 0
        assert [pid for pid in pids if str(pid) in plain_text.stdout] == [*pids]
        rows = plain_text.stdout.split("\n\n")[1].splitlines()[1:]
        listed = [row for row in rows if row.startswith("beta 1")]
        assert "RUNNING" in listed[0]  # and no running job is hidden by those that wait
        assert all("beta 1" in row for row in rows[: len(listed)])

        job = found[1]["jobs"][0]
        done = command("cancel", job["id"][:13])
        assert done.returncode == 0, done
        assert "was RUNNING and is CANCELLED" in done.stdout
        again = command("cancel", job["id"])
        assert (again.returncode, again.stdout) == (1, "")
        assert "is over: CANCELLED" in again.stderr
        queued = found[2]["jobs"][-1]["id"]
        assert "was QUEUED and is CANCELLED" in command("cancel", queued.upper()).stdout
        several = command("cancel", queued[0])
        assert several.returncode == 1
        assert "several jobs have an id that begins with" in several.stderr
        unknown = command("cancel", "nothing")
        assert unknown.returncode == 1
        assert "no job of yours" in unknown.stderr

        gate.touch()
        ends = {each.process.pid: each.finish()[1] for each in programs}
        by_place = [ends[seen["pid"]] for seen in found]
        assert by_place == ["['DONE']\n", "['CANCELLED', 'DONE']\n", "['CANCELLED', 'DONE']\n"]
        for each in programs:
            each.assert_nothing_left()
    assert told(pids) == []


def test_a_program_that_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("primitive_jobs.viewer.commands._PATIENCE", 0.3)
    monkeypatch.setattr("primitive_jobs.viewer.top._PATIENCE", 0.3)
    with program("stopped", 3, tmp_path / "gate") as one:
        watch = Watch()
        try:
            watch.ask()
            watch.hear_all(PATIENCE)
            os.kill(one.process.pid, signal.SIGSTOP)
            until(lambda: trouble_of(watch, one.process.pid) == "stopped", "that it is seen")
            watch.ask()
            watch.hear_all(0.2)  # in vain
            (seen,) = (p for p in watch.programs() if p.pid == one.process.pid)
            assert {job["name"] for job in seen.pools[0].rows} == {f"stopped {n}" for n in range(3)}
            # Whoever comes now waits no longer than others.
            begin = time.monotonic()
            assert main(["top", "--once"]) == 0
            assert main(["cancel", "nothing"]) == 1
            assert time.monotonic() - begin < PATIENCE / 2
            os.kill(one.process.pid, signal.SIGCONT)
            watch.hear_all(PATIENCE)
            until(lambda: trouble_of(watch, one.process.pid) == "", "that it goes on")
        finally:
            watch.close()


def trouble_of(watch: Watch, pid: int) -> str:
    return next(each.trouble for each in watch.programs() if each.pid == pid)


def test_what_is_told_of_a_stopped_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("primitive_jobs.viewer.commands._PATIENCE", 0.2)
    with program("stopped", 3, tmp_path / "gate") as one:
        os.kill(one.process.pid, signal.SIGSTOP)
        assert main(["cancel", "nothing"]) == 1
        text = f"process {one.process.pid} did not answer (it is stopped)"
        until(lambda: text in capsys.readouterr().err or main(["cancel", "no"]) == 0, text)
        os.kill(one.process.pid, signal.SIGCONT)


def test_a_program_that_dies_under_the_viewer(tmp_path: Path) -> None:
    with program("dying", 3, tmp_path / "gate") as one:
        pid = one.process.pid
        watch = Watch()
        try:
            watch.ask()
            watch.hear_all(PATIENCE)
            link = Link(next(each for each in sockets.find() if each.pid == pid))
            link.ask("cancel", id="nothing")  # its answer is on its way, or not
            os.kill(pid, signal.SIGKILL)
            until(lambda: gone(pid), "its death")
            watch.hear_all(1)

            def forgotten() -> bool:
                watch.ask()
                watch.hear_all(1)
                return all(each.pid != pid for each in watch.programs())

            until(forgotten, "that it is forgotten")

            def ask_on() -> None:
                while link.receive() is not None:
                    link.ask("find", id="nothing")

            with pytest.raises(LinkLost):
                ask_on()
            link.close()
        finally:
            watch.close()


# --- who listens there ---------------------------------------------------------------------------


def test_somebody_else_listens_under_our_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    name = f"primitive_jobs-0-{os.getpid()}-0123456789abcdef"
    code = (
        "import os, socket, sys; os.setgid(65533); os.setuid(65533);"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.bind('\\0' + sys.argv[1]);"
        "s.listen(); print('ready', flush=True); sys.stdin.read()"
    )
    with script("-c", code, name) as other:
        assert other.process.stdout is not None
        assert other.process.stdout.readline() == "ready\n"
        assert Found(name, os.getpid()) in sockets.find()
        with pytest.raises(Stranger):
            Link(Found(name, os.getpid()))
        watch = Watch()
        watch.ask()
        assert all(each.pid != os.getpid() for each in watch.programs())
        watch.close()
        assert main(["cancel", "nothing"]) == 1


def test_our_own_process_under_another_pid() -> None:
    name = f"primitive_jobs-{os.geteuid()}-1-0123456789abcdef"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(protocol.address(name))
        listening.listen()
        with pytest.raises(Stranger):
            Link(Found(name, 1))


@pytest.mark.parametrize(
    "datagram", [b"no JSON", b"[]", b'{"answer": 3}', b'{"rows": 3}', b'{"rows": [3]}', b""]
)
def test_a_pool_that_says_what_is_not_understood(datagram: bytes) -> None:
    name = protocol.new_name()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(protocol.address(name))
        listening.listen()
        link = Link(Found(name, os.getpid()))
        connection, _ = listening.accept()
        with connection:
            link.ask("snapshot")
            assert link.receive() is None
            connection.send(datagram)
            with pytest.raises(LinkLost):
                link.receive()
        link.close()


# --- the table -----------------------------------------------------------------------------------


def row(number: int, status: str = "RUNNING", **more: Any) -> Row:
    job = {"id": f"{number:08x}-0000", "name": f"job {number}", "status": status, "attempts": 1}
    return Row(7, {**job, "pid": None, **more}, float(number), None)


def test_texts_are_cut_to_columns() -> None:
    texts = ["", "plain", "an ω", "世界" * 5, "e\u0301" * 9, "x" * 40, "🙂🙂🙂"]
    for text in texts:
        for width in range(12):
            assert width_of(cut(text, width)) == width
    assert cut("12345", 4) == "123…"
    assert cut("世界", 3) == "世…"
    assert cut("世界世", 4) == "世… "


def test_a_name_cannot_steer_the_terminal() -> None:
    name = "a\x1b[2Jb\nc\u202ed\x07"
    assert plain(name) == "a?[2Jb c?d?"
    (_, line) = columns([row(1, name=name)])
    assert line.isprintable()


@pytest.mark.parametrize("width", [*range(1, 40), 80, 120, 300])
def test_rows_are_as_wide_as_the_window(width: int) -> None:
    rows = [
        row(1, name="世界 " * 30, node="tcp://a-long-name-of-a-node.example:40000", pid=12),
        row(2, "QUEUED", progress={"fraction": 0.5, "message": "x" * 90, "eta": 70.0}),
    ]
    assert {width_of(line) for line in columns(rows, width)} == {width}


def test_what_is_not_known_has_no_column() -> None:
    title, _ = columns([row(1)])
    assert "PROGRESS" not in title
    assert "ETA" not in title
    progress = {"fraction": 0.253, "message": "step 3", "eta": 61.2}
    title, line = columns([row(1, progress=progress)])
    assert "PROGRESS" in title
    assert "25 % step 3" in line
    assert "1:01" in line


def test_what_waits_for_its_next_attempt_says_so() -> None:
    title, line = columns([row(1, "QUEUED", waiting_for="retry in 4 s")])
    assert "PROGRESS" in title
    assert "retry in 4 s" in line
    assert "PROGRESS" not in columns([row(1, "QUEUED", waiting_for="a worker")])[0]


def test_the_node_of_a_worker_is_shown() -> None:
    _, line = columns([row(1, node="tcp://10.0.0.3:40000", pid=12)])
    assert "12 on tcp://10.0.0.3:40000" in line


def test_jobs_that_run_come_first_in_each_order() -> None:
    rows = [row(n, "RUNNING" if n % 3 == 0 else "QUEUED") for n in range(9)]
    for order in ("elapsed", "cpu", "memory", "progress", "name"):
        assert [each.runs for each in ordered(rows, order)] == [True] * 3 + [False] * 6
    assert [each.elapsed for each in ordered(rows, "elapsed")][:3] == [6.0, 3.0, 0.0]
    assert [each.elapsed for each in ordered(rows, "name")][:3] == [0.0, 3.0, 6.0]


def test_a_filter() -> None:
    one = row(255, node="tcp://machine")
    for text in ("", "job 255", "JOB", "000000ff", "running", "machine", "7", "sweep"):
        assert matches(one, "python sweep.py", text), text
    assert not matches(one, "python sweep.py", "nothing")


# --- the screen, and its keys --------------------------------------------------------------------


class Played:
    """A screen with jobs, and what was cancelled."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.cancelled: list[str] = []
        self.left: list[None] = []
        self.screen = Screen(
            "",
            lambda each: self.cancelled.append(each.id),
            lambda each: [f"where {each.name} is", "line 2"],
            lambda each: [f"{each.name} has printed:", *map(str, range(100))],
            lambda: self.left.append(None),
        )
        self.show()

    def show(self) -> None:
        pool = Pool(7, None, {"counts": {"running": 1, "queued": 5000}})
        pool.rows = [each.job for each in self.rows]
        self.screen.take_in([Program(7, "python sweep.py", "", [pool])], self.rows)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.screen.press(key)
            self.show()

    @property
    def marked(self) -> str:
        assert self.screen.marked is not None
        return self.screen.marked.name


@pytest.mark.parametrize("size", [(1, 1), (10, 2), (30, 5), (80, 24), (200, 60)])
def test_the_window_is_filled_and_not_passed(size: tuple[int, int]) -> None:
    played = Played([row(n, "QUEUED") for n in range(100)])
    for _ in range(3):
        lines = played.screen.lines(*size)
        assert len(lines) == size[1]
        assert {width_of(line.text) for line in lines} == {size[0]}
        played.press("pagedown", "k")


def test_no_running_job_is_hidden_by_those_that_wait() -> None:
    played = Played([*(row(n, "QUEUED", name="x") for n in range(500)), row(500)])
    text = "\n".join(line.text for line in played.screen.lines(80, 10))
    assert "job 500" in text
    played.press("/", *"job")
    assert [line.text for line in played.screen.lines(80, 10) if "job 500" in line.text]
    assert "1 running and 0 queued jobs are listed" in played.screen.lines(80, 10)[0].text


def test_the_mark_stays_at_its_job() -> None:
    played = Played([row(n) for n in range(30)])
    played.screen.lines(80, 24)
    assert played.marked == "job 29"  # by elapsed
    played.press("down", "down")
    assert played.marked == "job 27"
    played.rows.insert(0, row(99))
    played.show()
    assert played.marked == "job 27"
    played.rows = [each for each in played.rows if each.name != "job 27"]
    played.show()
    assert played.marked == "job 26"  # which is now where that was
    played.press("n", "home")
    assert played.marked == "job 0"
    played.press("end")
    assert played.marked == "job 99"
    lines = played.screen.lines(80, 12)
    assert ["job 99" in line.text for line in lines if line.look == "mark"] == [True]
    played.press("pageup", "up", "up")
    assert any(line.look == "mark" for line in played.screen.lines(80, 12))
    played.rows = []
    played.press("down", "k", "y", "end")
    assert (played.screen.marked, played.cancelled) == (None, [])


def test_a_cancel_is_asked_for_first() -> None:
    played = Played([row(n) for n in range(3)])
    played.press("k")
    assert "cancel job job 2 (00000002) of process 7? y/n" in played.screen.lines(80, 9)[-1].text
    played.press("n")
    assert played.cancelled == []
    assert played.screen.order == "elapsed"  # that was the answer, no key
    played.press("down", "k")
    played.rows.insert(0, row(9))  # what comes meanwhile is not meant
    played.press("y", "y")
    assert played.cancelled == ["00000001-0000"]


def test_a_stack_takes_the_place_of_the_table() -> None:
    played = Played([row(n) for n in range(3)])
    played.press("down", "s")
    lines = played.screen.lines(40, 6)
    assert [line.text.rstrip() for line in lines] == [
        "where job 1 is",
        "line 2",
        "",
        "",
        "",
        "any key",
    ]
    played.press("q")  # is any key
    assert played.left == []
    assert "job 1" in "".join(line.text for line in played.screen.lines(80, 24))


def test_the_end_of_what_it_has_printed_does_so_too() -> None:
    played = Played([row(n) for n in range(3)])
    played.screen.lines(40, 6)
    played.press("down", "o")
    lines = [line.text.rstrip() for line in played.screen.lines(40, 6)]
    assert lines[0] == "job 1 has printed:"
    assert "99" in lines
    assert lines[-1] == "any key"


def test_a_filter_is_typed() -> None:
    played = Played([row(n) for n in range(12)])
    played.press("/", *"job 1", "q")
    assert "filter: job 1q_" in played.screen.lines(80, 9)[-1].text
    played.press("backspace", "enter")
    assert [each.name for each in played.screen._rows] == ["job 11", "job 10", "job 1"]
    played.press("/", "x", "escape")
    assert played.screen.filter == "job 1"
    played.press("escape")
    assert len(played.screen._rows) == 12
    played.press("q")
    assert played.left == [None]


def test_many_programs_leave_room_for_jobs() -> None:
    played = Played([row(1)])
    many = [Program(n, "python", "", []) for n in range(50)]
    played.screen.take_in(many, played.rows)
    lines = [line.text for line in played.screen.lines(80, 20)]
    assert any("and 46 more programs" in line for line in lines)
    assert any("job 1" in line for line in lines)


def test_what_a_terminal_sends_is_keys() -> None:
    assert keys_in("a\x1b[A\x1bOB\x1b[5~\x1b[6~\x1b\r\x7fé") == [
        *("a", "up", "down", "pageup", "pagedown", "escape", "enter", "backspace", "é")
    ]
    assert keys_in("\x1b[1;5Ck\x1b[200~") == ["k"]  # Ctrl and an arrow, a paste: not known
    assert keys_in("\x1b[H\x1b[F\x1bOH\x1b[4~") == ["home", "end", "home", "end"]
    assert keys_in("\x1b") == ["escape"]


# --- in a terminal -------------------------------------------------------------------------------


class Terminal:
    """`top` in a terminal of its own."""

    def __init__(self, *arguments: str, rows: int = 24, columns: int = 100) -> None:
        self.fd, theirs = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "primitive_jobs", "top", "--interval", "0.2", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm"},
            start_new_session=True,
        )
        self._theirs = theirs
        self.text = ""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def until(self, pattern: str) -> str:
        """Wait for a text that was not there before; return what was drawn up to it."""
        end = time.monotonic() + PATIENCE
        while (found := re.search(pattern, self.text)) is None:
            left = end - time.monotonic()
            assert left > 0, (pattern, self.text[-3000:])
            if select.select([self.fd], [], [], left)[0]:
                self.text += os.read(self.fd, 65536).decode(errors="replace")
        seen, self.text = self.text[: found.end()], self.text[found.end() :]
        return seen

    def finish(self) -> int:
        """Its exit status; what it changed in the terminal is as it was."""
        status = None
        end = time.monotonic() + PATIENCE
        while (status := self.process.poll()) is None and time.monotonic() < end:
            if select.select([self.fd], [], [], 0.01)[0]:
                self.text += os.read(self.fd, 65536).decode(errors="replace")
        assert status is not None
        assert termios.tcgetattr(self._theirs) == self.before
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.fd)
        os.close(self._theirs)


@contextlib.contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    pytest.importorskip("rich")
    opened = Terminal(*arguments)
    try:
        yield opened
    finally:
        opened.close()


def test_keys_in_a_terminal(tmp_path: Path) -> None:
    with JobPool(2, spare_workers=0) as pool:
        jobs = [
            pool.options(name=f"mine{n}").submit(hold, tmp_path / f"gate{n}") for n in range(50)
        ]
        until(lambda: jobs[0].running() and jobs[1].running(), "RUNNING")
        monitor_of(pool)
        with terminal("--filter", "mine") as top:
            top.until("mine0 +RUNNING")
            top.press("/")
            top.until("filter: mine_")
            top.press("1\r")
            top.until("filter: mine1 ")
            top.resize(8, 60)
            os.kill(top.process.pid, signal.SIGWINCH)  # as the kernel sends to who is in front
            drawn = top.until("mine1 +RUNNING")
            assert "mine0" not in drawn
            top.press("k")
            top.until(r"cancel job mine1 \(" + jobs[1].job_id()[:8])
            top.press("y")
            assert jobs[1].wait(PATIENCE)
            assert jobs[1].status() is JobStatus.CANCELLED
            top.until("was RUNNING and is CANCE")
            top.press("s")
            top.until("any key")
            top.press(" ")
            top.until("mark")
            top.press("/")
            top.until("filter: mine1_")
            top.press("\x7f0\r")
            top.until("filter: mine0 ")
            top.press("k")
            top.until(r"cancel job mine0")
            top.press("\x1b[B")  # an arrow is no yes
            top.until("nothing was cancelled")
            assert jobs[0].running()
            top.press("q")
            assert top.finish() == 0
        pool.shutdown(cancel=True)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_signals_leave_the_terminal_as_it_was(number: int, status: int) -> None:
    with terminal("--filter", "nothing at all") as top:
        top.until("filter: nothing at all")
        os.kill(top.process.pid, number)
        assert top.finish() == status


def test_without_rich() -> None:
    code = "import sys; sys.modules['rich'] = None; from primitive_jobs.viewer import top; "
    call = "sys.stdin.isatty = sys.stdout.isatty = lambda: True; "
    end = "sys.exit(top.top(once=False, as_json=False, pause=1.0, text=''))"
    done = subprocess.run(
        [sys.executable, "-c", code + call + end], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "--once" in done.stderr
    code = "import sys; from primitive_jobs.__main__ import main; "
    call = "main(['top', '--once', '--filter', 'no']); print({'rich', 'loky'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code + call], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"


def test_where_there_is_no_terminal_it_is_once() -> None:
    done = command("top", "--filter", "nothing")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [["cancel"], ["cancel", ""], ["top", "--interval", "0"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2


# --- what jobs tell and print --------------------------------------------------------------------

TELLS = """
import sys, time
from pathlib import Path
from primitive_jobs import JobPool, report

def job(gate, mode):
    report(0.25, "half a quarter", x=1.5)
    print("first line of", mode, "\u00bd")
    sys.stdout.flush()
    while not Path(gate).exists():
        time.sleep(0.01)
    if mode != "inherit":
        print("last line")

gate, log = sys.argv[1:]
with JobPool(3, spare_workers=0) as pool:
    modes = {"capture": "capture", "file": log, "inherit": "inherit"}
    jobs = [
        pool.options(name=name, output=mode).submit(job, gate, name)
        for name, mode in modes.items()
    ]
    while not all(one.progress and one.output() != "" for one in jobs):
        time.sleep(0.01)
    print("ready", *(one.job_id() for one in jobs), flush=True)
    for one in jobs:
        one.wait()
    time.sleep(1.5)
"""


def test_what_jobs_tell_and_print_is_seen(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    # Unbuffered, a line that a job prints might come in the midst of the program's.
    buffered = {"PYTHONUNBUFFERED": ""}
    with script("-c", TELLS, str(gate), str(tmp_path / "a.log"), env=buffered) as started:
        assert started.process.stdout is not None
        while not (line := started.process.stdout.readline()).startswith("ready"):
            assert line, "it has ended"
        captured, filed, inherited = line.split()[1:]

        def fractions() -> list[Any]:
            (seen,) = told({started.process.pid})
            told_last[:] = seen["jobs"]
            return [(job["progress"] or {}).get("fraction") for job in told_last]

        told_last: list[Any] = []
        # What somebody else has asked for a moment ago is told again.
        until(lambda: fractions() == [0.25] * 3, "what they have told")
        seen = {"jobs": told_last}
        assert seen["jobs"][0]["progress"]["message"] == "half a quarter"
        for job_id, name in ((captured, "capture"), (filed, "file")):
            done = command("output", job_id[:20])
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout == f"first line of {name} ½\n"
        done = command("output", inherited)
        assert (done.returncode, done.stdout) == (1, "")
        assert "is not kept" in done.stderr
        follow = [sys.executable, "-m", "primitive_jobs", "output", "-f", captured]
        with subprocess.Popen(follow, stdout=subprocess.PIPE, text=True, cwd=ROOT) as following:
            assert following.stdout is not None
            assert following.stdout.readline() == "first line of capture ½\n"
            gate.touch()
            assert following.stdout.read() == "last line\n"
            assert following.wait(PATIENCE) == 0
        started.finish()
        started.assert_nothing_left()
