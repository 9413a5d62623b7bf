"""In a notebook: a real kernel, run by nbclient, and interrupted; and what jobs and pools show."""

from __future__ import annotations

import html.parser
import re
import time
from pathlib import Path
from typing import Any

import pytest
from notebooks import run_cells, text_of

from primitive_jobs import JobPool, JobStatus, PrimitiveJob
from primitive_jobs._common.markup import bar, seconds

PATIENCE = 30.0  # s


NOTEBOOK = {
    "start": """
import importlib, logging, os, sys, time
from pathlib import Path
from primitive_jobs import JobPool, as_completed, run, track

sys.path.insert(0, ".")
records = []

class Keep(logging.Handler):
    def emit(self, record):
        records.append(record.getMessage())

logging.getLogger("primitive_jobs").addHandler(Keep())
logging.getLogger("primitive_jobs").setLevel(logging.INFO)
pool = JobPool(2, idle_timeout=30)

def told(count):  # of new code, so many times or more; records come on a thread of their own
    end = time.monotonic() + 20
    while True:
        found = sum("code was reloaded" in record for record in records)
        if found >= count or time.monotonic() > end:
            return found

def write(version, second):
    Path("edited.py").write_text(f"def version():\\n    return {version}\\n")
    os.utime("edited.py", (1e9 + second, 1e9 + second))
""",
    "job": """
job = pool.options(name="<script>alert('x')</script>").submit(pow, 3, 2)
job.result()
job
""",
    "map": "print(sum(pool.map(abs, range(-10, 0))), run(pow, 2, 3).result())",
    "cancel": """
endless = pool.submit(lambda: [None for _ in iter(int, 1)])
print(endless.cancel(), endless.status().name)
""",
    "track": """
jobs = [pool.submit(pow, n, 2) for n in range(8)] + [pool.submit(int, "x"), endless]
print(sum(job.result() for job in track(jobs, "<b>sweep</b>") if job.done()))
""",
    "pool": "pool",
    "timeline": "pool.timeline()",
    "define": "def edited_here(): return 'before'\nprint(pool.submit(edited_here).result())",
    "define again": "def edited_here(): return 'after'\nprint(pool.submit(edited_here).result())",
    "module": """
write(1, 0)
import edited
print(pool.submit(edited.version).result(), pool.submit(lambda: edited.version()).result())
""",
    "reload": """
write(2, 10)
importlib.reload(edited)
print(pool.submit(edited.version).result(), pool.submit(lambda: edited.version()).result())
print(told(1))
""",
    "autoreload": "%load_ext autoreload\n%autoreload 2",
    "edit": "write(3, 20)",
    "edited": """
print(edited.version(), pool.submit(edited.version).result())
print(pool.submit(lambda: edited.version()).result(), told(2))
""",
    "unchanged": "print(pool.submit(edited.version).result(), told(2))",
    "end": "pool.shutdown()\nprint(repr(pool))",
}


def test_a_notebook_end_to_end(tmp_path: Path) -> None:
    found = dict(zip(NOTEBOOK, run_cells("notebook", tmp_path, [*NOTEBOOK.values()]), strict=True))
    (shown,) = found["job"]
    assert "&lt;script&gt;" in shown["data"]["text/html"]
    assert "<script" not in shown["data"]["text/html"]
    assert "DONE" in shown["data"]["text/plain"]
    assert text_of(found["map"]) == "55 8\n"
    assert text_of(found["cancel"]) == "True CANCELLED\n"
    assert text_of(found["track"]) == "140\n"
    (progress,) = (output for output in found["track"] if output["output_type"] == "display_data")
    assert progress["data"]["text/plain"].startswith("<b>sweep</b>: 10/10, 1 failed, 1 cancelled")
    assert "&lt;b&gt;sweep" in progress["data"]["text/html"]
    (shown,) = found["pool"]
    for part in ("0 queued, 0 running", "1 failed, 1 cancelled", "0 busy, ", "idle_timeout=30.0"):
        assert part in shown["data"]["text/html"]
    (shown,) = found["timeline"]
    assert shown["data"]["image/svg+xml"].startswith("<svg ")
    assert "lost to kills and deaths" in shown["data"]["text/plain"]
    assert text_of(found["define"]) == "before\n"
    assert text_of(found["define again"]) == "after\n"
    assert text_of(found["module"]) == "1 1\n"
    assert text_of(found["reload"]) == "2 2\n1\n"
    assert text_of(found["edited"]) == "3 3\n3 2\n"
    assert text_of(found["unchanged"]) == "3 2\n"
    assert "shut down: 0 queued, 0 running" in text_of(found["end"])
    for outputs in found.values():
        assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not (tmp_path / "home" / ".local").exists()


WAITS = ("job.result()", "list(as_completed([job]))", "wait([job])", "list(track([job]))")


def test_an_interrupted_cell_cancels_nothing(tmp_path: Path) -> None:
    cells = [
        """
import os, sys, threading, time
from pathlib import Path
from primitive_jobs import JobPool, as_completed, track, wait

def tell_when_waiting():  # and not before: an interrupt of the telling itself would prove nothing
    def look():
        cell = threading.main_thread().ident
        while not in_package(sys._current_frames()[cell]):
            time.sleep(0.001)
        Path("waiting").touch()

    threading.Thread(target=look).start()

def in_package(frame):
    while frame and not frame.f_globals.get("__name__", "").startswith("primitive_jobs."):
        frame = frame.f_back
    return frame is not None

def hold(n):
    while not os.path.exists("go"):
        time.sleep(0.01)
    return n

pool = JobPool(2)
job = pool.submit(hold, 7)
while not job.running():
    time.sleep(0.01)
""",
        *(f"tell_when_waiting(); {call}  # INTERRUPTED" for call in WAITS),
        "print(job.status().name, job.attempts)",
        "results = pool.map(hold, range(5), chunksize=1)",
        "tell_when_waiting(); next(results)  # INTERRUPTED",
        "while pool.jobs() != [job]: time.sleep(0.01)\nprint(*pool.map(abs, range(3)))",
        "Path('go').touch(); print(job.result(), job.attempts, pool.submit(hold, 8).result())",
        "pool.shutdown()",
    ]
    found = run_cells("interrupted", tmp_path, cells)
    for cell, (_, raised) in zip(cells, found, strict=True):
        assert raised == ("KeyboardInterrupt" if "INTERRUPTED" in cell else None), cell
    printed = [text for text, _ in found if text]
    # An interrupted map cancels its own jobs: nobody else could have their results.
    assert printed == ["RUNNING 1\n", "0 1 2\n", "7 1 8\n"]


# --- what is shown, in this process ---------------------------------------------------------------


class Checker(html.parser.HTMLParser):
    """Collects the text; fails where an element is not closed, or no element of ours."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("div", "span", "b", "table", "tr", "td")
        assert [name for name, _ in attrs] in ([], ["style"])
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def cells_of(shown: PrimitiveJob[Any] | JobPool) -> dict[str, str]:
    """The rows, and under "" what stands above."""
    text = shown._repr_html_()
    assert not re.search(r"#[0-9a-f]{3}|\brgb|https?:", text), "no colour of its own, no link"
    above, _, rows = text.partition("<table")
    found = {"": " ".join(" ".join(Checker(above + "</div>").texts).split())}
    for row in re.findall(r"<tr.*?</tr>", rows):
        label, value = Checker(row).texts
        found[label] = value
    Checker(text)
    return found


def test_a_job_in_each_state(marks: Path) -> None:
    def hold(path: Path = marks / "go") -> None:
        while not path.exists():
            time.sleep(0.01)

    with JobPool(1, spare_workers=0) as pool:
        fresh = PrimitiveJob(pow, 2, 3)
        assert cells_of(fresh) == {"": "PrimitiveJob pow INITIALIZING", "id": fresh.job_id()}
        running, queued = pool.submit(hold), pool.submit(pow, 2, 3)
        while not running.running():
            time.sleep(0.005)
        shown = cells_of(running)
        assert shown[""].endswith("hold RUNNING")
        assert shown["worker"] == f"process {running.pid}"
        assert float(shown["took"].split()[0]) >= float(shown["ran"].split()[0])
        shown = cells_of(queued)
        assert shown[""] == "PrimitiveJob pow QUEUED"
        assert shown["ran"] == "0.000 s"
        assert "worker" not in shown
        fresh.cancel()
        assert cells_of(fresh) == {"": "PrimitiveJob pow CANCELLED", "id": fresh.job_id()}
        (marks / "go").touch()
        queued.result(PATIENCE)
        shown = cells_of(queued)
        assert shown[""] == "PrimitiveJob pow DONE"
        assert float(shown["waited"].split()[0]) > 0
        assert shown == cells_of(queued), "it stands still"
        failed = pool.options(name="<b>&'\"\u2603").submit(int, "x")
        failed.wait(PATIENCE)
        title = cells_of(failed)[""]
        assert title.startswith("PrimitiveJob <b>&'\"\u2603 ERROR ValueError: invalid literal for")
        assert failed.status() is JobStatus.ERROR
        odd = pool.options(name="caf\udce9.dat").submit(pow, 2, 3)  # as os.listdir gives it
        assert r"caf\udce9.dat" in odd._repr_html_().encode().decode()


def test_a_pool_counts_what_has_ended_and_keeps_none_of_it(marks: Path) -> None:
    def hold(path: Path = marks / "go") -> None:
        while not path.exists():
            time.sleep(0.01)

    with JobPool(1, spare_workers=0, preload=("json",), memory_limit="4 GB") as pool:
        assert cells_of(pool)["jobs"] == "0 queued, 0 running, 0 done"
        assert cells_of(pool)["workers"] == "0 busy, 0 idle; at most 1 busy"
        options = cells_of(pool)["options"]
        assert "memory_limit=4000000000" in options
        assert "preload=('json',)" in options
        for n in range(20):  # each handed over by its caller
            pool.submit(pow, n, 2).result(PATIENCE)
        with pytest.raises(ValueError, match="invalid literal"):
            pool.submit(int, "x").result(PATIENCE)
        assert repr(pool) == (
            "<JobPool max_workers=1 open: 0 queued, 0 running, 20 done, 1 failed>"
        )
        holding = pool.submit(hold)  # handed over: the dispatcher sleeps on
        while not holding.running():
            time.sleep(0.001)
        assert cells_of(pool)["jobs"] == "0 queued, 1 running, 20 done, 1 failed"
        assert cells_of(pool)["workers"] == "1 busy, 0 idle; at most 1 busy"
        waiting = [pool.submit(pow, n, 2) for n in range(5)]
        assert cells_of(pool)["jobs"] == "5 queued, 1 running, 20 done, 1 failed"
        assert waiting[0].cancel()
        assert cells_of(pool)["jobs"] == "4 queued, 1 running, 20 done, 1 failed, 1 cancelled"
        (marks / "go").touch()
        waiting[-1].result(PATIENCE)
    assert cells_of(pool)["jobs"] == "0 queued, 0 running, 25 done, 1 failed, 1 cancelled"
    assert cells_of(pool)[""] == "JobPool shut down"


def test_a_pool_that_is_under_way_can_always_be_shown() -> None:
    with JobPool(2) as pool:
        jobs = [pool.submit(pow, n, 2) for n in range(300)]
        while not all(job.in_final_state() for job in jobs):
            found = re.search(r"(\d+) queued, (\d+) running, (\d+) done", repr(pool))
            assert found is not None
            assert int(found[2]) <= 2
            assert sum(map(int, found.groups())) == 300
    assert "300 done" in repr(pool)


def test_the_bar_and_the_times() -> None:
    text = bar("<i>", [0.5, 0.25, 0.1], "5/10")
    assert Checker(text).texts == ["<i>", "5/10"]
    assert "width:50.00%" in text
    given = [0.01234, 12.34, 59.99, 125, 3725, -1]
    assert [seconds(number) for number in given] == [
        "0.012 s",
        "12.3 s",
        "60.0 s",
        "2:05",
        "1:02:05",
        "0.000 s",
    ]
