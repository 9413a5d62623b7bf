"""`cancel`, `stack`, `output`: what is done to one job, which is found by the begin of its id.

A command asks all pools whether they know the job, and the one that does to do something; so
another command is one function here, and one in `monitor.requests`.
"""

from __future__ import annotations

import codecs
import select
import sys
import time
from typing import Any

from .link import Answer, Link, LinkLost
from .processes import state_of
from .sockets import find
from .table import plain, plain_line

_PATIENCE = 3.0  # s that pools have to say whether they know a job
_STACK_TIME = 1.0  # s that Python has to answer, and then C
_STACK_PAUSE = 0.02  # s between two looks whether it has
_OUTPUT_PAUSE = 0.3  # s between two looks whether there is more
_MOST_OF_FILE = 1 << 20  # bytes that are read of a file at a time
_MOST_SHOWN = 64 << 10  # characters of the end that the live table shows
_WORKER = "primitive_jobs/_worker/loop.py"


class NoSuchJob(Exception):
    """It is not there, or more than one is; the text says so."""


class NoStack(Exception):
    """A job does not say where it is; the text says why."""


def wait_for(links: list[Link], seconds: float) -> dict[Link, Answer]:
    """Return the answers that come within so many seconds; links that are lost have none."""
    end = time.monotonic() + seconds
    waiting = {link.fileno(): link for link in links}
    answers: dict[Link, Answer] = {}
    poller = select.poll()
    for fd in waiting:
        poller.register(fd, select.POLLIN)
    while waiting and (left := end - time.monotonic()) > 0:
        for fd, _ in poller.poll(left * 1000):
            link = waiting[fd]
            try:
                answer = link.receive()
            except LinkLost:
                answer = Answer({"error": "it has ended"}, [])
            if answer is not None:
                answers[link] = answer
                poller.unregister(fd)
                del waiting[fd]
    return answers


def find_job(prefix: str) -> tuple[Link, dict[str, Any]]:
    """Return the one job whose id begins so, and the link to its pool, to be closed.

    Raises:
        NoSuchJob: There is none, or more than one.
    """
    links: list[Link] = []
    kept: Link | None = None
    try:
        for found in find():
            try:
                link = Link(found)
                links.append(link)
                link.ask("find", id=prefix.lower())
            except LinkLost:
                continue
        answers = wait_for([link for link in links if link.asked_at is not None], _PATIENCE)
        jobs = [(link, row) for link, answer in answers.items() for row in answer.rows]
        jobs = [each for each in jobs if not each[1].get("over")] or jobs
        if len(jobs) != 1:
            silent = [link.found.pid for link in links if link not in answers]
            raise NoSuchJob(_none_of(prefix, silent) if not jobs else _several(prefix, jobs))
        kept = jobs[0][0]
        return jobs[0]
    finally:
        for link in links:
            if link is not kept:
                link.close()


def _none_of(prefix: str, silent: list[int]) -> str:
    text = f"no job of yours that is queued or running has an id that begins with {prefix!r}"
    for pid in sorted(set(silent)):
        text += f"; process {pid} did not answer" + (" (it is stopped)" if state_of(pid) else "")
    return text


def _several(prefix: str, jobs: list[tuple[Link, dict[str, Any]]]) -> str:
    lines = [f"several jobs have an id that begins with {prefix!r}:"]
    for link, job in jobs:
        name, status = plain(job.get("name")), job.get("status") or "over"
        lines.append(f"  {job.get('id')}  {name}  {status}  of process {link.found.pid}")
    return "\n".join(lines)


def called(job: dict[str, Any]) -> str:
    """What a job is called in messages."""
    return f"job {plain(job.get('name'))} ({job.get('id')})"


# --- cancel ---------------------------------------------------------------------------------------


def cancel(prefix: str) -> int:
    """Cancel a job, and tell what became of it; return the exit status: 0 if it is cancelled."""
    link: Link | None = None
    try:
        link, job = find_job(prefix)
        link.ask("cancel", id=job["id"])
        answer = None
        while answer is None:  # for as long as its grace
            answer = wait_for([link], _PATIENCE).get(link)
        text, done = outcome(job, answer)
    except (NoSuchJob, LinkLost, OSError) as error:
        text, done = str(error), False
    finally:
        if link is not None:
            link.close()
    print(text, file=sys.stdout if done else sys.stderr)
    return 0 if done else 1


def outcome(job: dict[str, Any], answer: Answer) -> tuple[str, bool]:
    """Return what became of a job that was to be cancelled, and whether it is cancelled by that."""
    if "error" in answer.head:
        return f"{called(job)}: {answer.head['error']}", False
    last, was = answer.head.get("job"), answer.head.get("was")
    if not isinstance(last, dict):
        return f"{called(job)} is over", False
    status = last.get("status")
    if was is None:
        return f"{called(job)} is over" + (f": {status}" if status else ""), False
    if status == "CANCELLED":
        more = "nothing of it runs any more" if was == "RUNNING" else "it does not run"
        return f"{called(job)} was {was} and is CANCELLED: {more}", True
    return f"{called(job)} was {was} and is {status}: it ended before the cancel took effect", False


# --- stack ----------------------------------------------------------------------------------------


def stack(prefix: str, *, force: bool) -> int:
    """Print where a running job is; return the exit status: 0 if it has said so."""
    link: Link | None = None
    try:
        link, job = find_job(prefix)
        lines = stack_of(link, job, force=force)
    except (NoSuchJob, NoStack, LinkLost, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        if link is not None:
            link.close()
    print("\n".join(lines))
    return 0


def stack_of(link: Link, job: dict[str, Any], *, force: bool = False) -> list[str]:
    """Return where a running job is, in lines; it takes some 3 s at most.

    Raises:
        NoStack: It does not say; the text says why.
        LinkLost: The program is gone.
    """
    if job.get("status") != "RUNNING":
        raise NoStack(f"{called(job)} is {job.get('status') or 'over'}: it is not running")
    for deep in (False, True):
        _ask_stack(link, job, deep=deep, force=force)
        before: list[str] = []
        end = time.monotonic() + _STACK_TIME
        while time.monotonic() < end:
            answer = _answered(link, job, "stack")
            lines = [plain_line(row.get("line")) for row in answer.rows]
            # One from C has no end that could be seen; it is written in less than a millisecond.
            if answer.head.get("complete") or (deep and lines and lines == before):
                return [f"{called(job)}, {'in C code' if deep else 'in Python'}:", *of_job(lines)]
            before = lines
            time.sleep(_STACK_PAUSE)
    raise NoStack(f"{called(job)}: process {job.get('pid')} does not answer")


def _ask_stack(link: Link, job: dict[str, Any], *, deep: bool, force: bool) -> None:
    """Ask until there is nothing against it: a job may come out of a sleep a moment later."""
    end = time.monotonic() + _STACK_TIME
    while True:
        try:
            _answered(link, job, "ask stack", deep=deep, force=force)
            return
        except NoStack:
            if time.monotonic() > end:
                raise
        time.sleep(_STACK_PAUSE)


def _answered(link: Link, job: dict[str, Any], what: str, **fields: object) -> Answer:
    link.ask(what, id=job["id"], **fields)
    answer = wait_for([link], _PATIENCE).get(link)
    if answer is None:
        raise NoStack(f"process {link.found.pid} does not answer")
    if "error" in answer.head:
        raise NoStack(f"{called(job)}: {plain(answer.head['error'])}")
    return answer


def of_job(lines: list[str]) -> list[str]:
    """Return a stack without what is the worker's own, below the job."""
    for place, line in enumerate(lines):
        if _WORKER in line:
            return lines[:place] or ["  (between two jobs)"]
    return lines


# --- output ---------------------------------------------------------------------------------------


class NoOutput(Exception):
    """What a job prints is not to be had; the text says why."""


class Reader:
    """Reads what one job has printed, piece by piece.

    Args:
        link: To its pool.
        job: The job.

    Attributes:
        over: Whether nothing more comes.
    """

    def __init__(self, link: Link, job: dict[str, Any]) -> None:
        self.over = False
        self._link = link
        self._job = job
        self._place = 0
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def read(self) -> str:
        """Return what is new, as text; "" where nothing is.

        Raises:
            NoOutput: It is not to be had.
            LinkLost: The program is gone.
        """
        self._link.ask("output", id=self._job["id"], place=self._place)
        answer = wait_for([self._link], _PATIENCE).get(self._link)
        if answer is None:
            raise NoOutput(f"process {self._link.found.pid} does not answer")
        if "error" in answer.head:
            raise NoOutput(f"{called(self._job)}: {plain(answer.head['error'])}")
        path, start = answer.head.get("path"), answer.head.get("start")
        over = answer.head.get("over") is True
        if isinstance(path, str):
            data = self._of_file(path)
            start = self._place
        else:
            data = b"".join(str(row.get("bytes")).encode("latin-1") for row in answer.rows)
        if not isinstance(start, int):
            raise NoOutput(f"{called(self._job)}: its program does not say what it has printed")
        gap = start - self._place
        self._place = start + len(data)
        self.over = over and not data
        text = self._decode(data, self.over)
        return f"\n[... {gap:,} bytes left out ...]\n{text}" if gap > 0 else text

    def _of_file(self, path: str) -> bytes:
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - as the others that read it
                file.seek(self._place)
                return file.read(_MOST_OF_FILE)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise NoOutput(f"{called(self._job)}: {error}") from error


def output(prefix: str, *, follow: bool) -> int:
    """Print what a job has printed; with ``follow`` until it is over. Return the exit status."""
    link: Link | None = None
    try:
        link, job = find_job(prefix)
        reader = Reader(link, job)
        while not reader.over:
            text = reader.read()
            sys.stdout.write(text)
            sys.stdout.flush()
            if not text:
                if not follow:
                    break
                time.sleep(_OUTPUT_PAUSE)
    except (NoSuchJob, NoOutput, LinkLost, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        print(error, file=sys.stderr)
        return 1
    finally:
        if link is not None:
            link.close()
    return 0


def output_of(link: Link, job: dict[str, Any]) -> list[str]:
    """Return what a job has printed, in lines; raises as `Reader.read`."""
    reader, text = Reader(link, job), ""
    while piece := reader.read():
        text = (text + piece)[-_MOST_SHOWN:]
    lines = [plain_line(line) for line in text.splitlines()]
    return [f"{called(job)} has printed:", *(lines or ["nothing yet"])]


__all__ = [
    "NoOutput",
    "NoStack",
    "NoSuchJob",
    "called",
    "cancel",
    "find_job",
    "outcome",
    "output",
    "output_of",
    "stack",
    "stack_of",
    "wait_for",
]
