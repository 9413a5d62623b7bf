"""Draw docs/_static/sweep.svg: a terminal in which a sweep runs, one job cancelled, one crashed.

`python docs/make_picture.py` runs the sweep on a terminal of its own and writes the picture.
Nothing in it is typed by hand; a test runs the sweep again and compares the words.
"""

from __future__ import annotations

import fcntl
import html
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).parent / "_static" / "sweep.svg"
COLUMNS = 84
SWEEP = """\
import os, time
from math import sinh
from primitive_jobs import JobPool, WorkerDiedError, track

SECONDS = {1.5: 0.3, 1.8: 3600, 2.0: 0.2, 2.1: 0.1, 2.2: 0.4, 2.25: 0.3}

def magnetization(temperature: float) -> float:
    time.sleep(SECONDS[temperature])  # a simulation takes its time
    if temperature == 2.1:
        os.abort()
    return (1 - sinh(2 / temperature) ** -4) ** 0.125

with JobPool(max_workers=2) as pool:
    jobs = {t: pool.options(name=f"T={t}").submit(magnetization, t) for t in SECONDS}
    for job in track(jobs.values(), "sweep"):
        try:
            print(f"{job.name:7} {job.status().name:10} |M| = {job.result():.4f}")
        except Exception as error:
            why = str(error).splitlines()[0].split(": ")[-1]
            print(f"{job.name:7} {job.status().name:10} {why}")
        jobs[1.8].cancel()
    print(pool)
"""


def screen() -> str:
    """Run the sweep on a terminal; return what it shows in the end, with its colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    env = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "sweep.py"
        script.write_text(SWEEP, encoding="utf-8")
        command = [sys.executable, str(script)]
        with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=env):
            os.close(theirs)
            written = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    # A line that was drawn anew shows what was written last.
    return "\n".join(
        re.split(r"\r\x1b\[2K", line)[-1].rstrip() for line in written.decode().split("\r\n")
    )


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # what Linux has in the place of an end
        return b""


def draw(shown: str) -> str:
    """Return the picture of a terminal that shows this."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ python sweep.py", style="bold"))
    console.print(Text.from_ansi(re.sub(r"\x1b\[\?25[lh]", "", shown)))
    picture = console.export_svg(title="sweep.py", unique_id="sweep")
    # No font of another site: a reader's own is good enough.
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)


def words(picture: str) -> list[str]:
    """Return the lines of text in a picture, sorted, without what differs from run to run."""
    found = re.findall(
        r'<text class="sweep-r\d+" x="[\d.]+" y="([\d.]+)".*?>([^<]*)</text>', picture
    )
    lines: dict[str, str] = {}
    for height, text in found:
        lines[height] = lines.get(height, "") + html.unescape(text).replace("\xa0", " ")
    shown = [re.sub(r"[\d.]+/\w+, in [\d:]+|━+", "", line) for line in lines.values()]
    return sorted(line.rstrip() for line in shown if line.strip())


if __name__ == "__main__":
    PICTURE.write_text(draw(screen()), encoding="utf-8")
