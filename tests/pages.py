"""For the tests of README and documentation: the code of a page as a script, and what it prints.

The Python blocks of a page make one script, in their order. A block of the kind "output" is what
the block before it prints; "..." in a line of it stands for anything, alone in a line for any
lines. A command of the shell runs, too, where what it prints stands right behind it.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(
    r"^```(python|output|sh(?=\n[^`]*^```\n\n```output))\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
SPLIT = "\x1e"
PROGRESS = re.compile(r"[\w ]+: \d+/\d+.*")  # what `track` writes to a file


def parts(text: str) -> tuple[str, list[str | None]]:
    """The script of a page, which prints ``SPLIT`` after each block, and what the page says."""
    code: list[str] = []
    outputs: list[str | None] = []
    for kind, content in BLOCK.findall(text):
        if kind == "output":
            outputs[-1] = content
            continue
        ends = f"print({SPLIT!r}, flush=True)"
        if kind == "python":
            code.append(content)
        else:
            command = re.sub(r"^python ", f"{shlex.quote(sys.executable)} ", content)
            ends = f"__import__('subprocess').run({command!r}, shell=True, check=True)\n    {ends}"
        # A Dask cluster of this machine imports the script in each of its nodes.
        code.append(f"if __name__ == '__main__':\n    {ends}\n")
        outputs.append(None)
    return "\n".join(code), outputs


def assert_printed(printed: str, expected: str) -> None:
    """Compare what a part has printed with what the page says."""
    pattern = "".join(
        r"(.*\n)*" if line == "..." else re.escape(line.rstrip()).replace(r"\.\.\.", ".*") + "\n"
        for line in expected.strip().splitlines()
    )
    found = "".join(f"{line.rstrip()}\n" for line in printed.strip().splitlines())
    assert re.fullmatch(pattern, found), f"printed:\n{found}\nnot:\n{expected}"


def run_script(code: str, folder: Path) -> str:
    """Run it as a user does, warnings being errors; return what it prints."""
    script = folder / "example.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        timeout=100,  # a page that starts Dask clusters takes 10 s on a quiet machine
        cwd=folder,
        check=False,
    )
    complaints = [
        line
        for line in done.stderr.splitlines()
        if not ("track(" in code and PROGRESS.fullmatch(line))
        and "building the font cache" not in line  # matplotlib does, once
    ]
    assert not complaints, done.stderr
    assert done.returncode == 0
    return done.stdout


def run_page(text: str, folder: Path) -> list[tuple[str, str | None]]:
    """Run the blocks of a page; return what each prints, and what the page says, if it does."""
    code, outputs = parts(text)
    printed = run_script(code, folder).split(SPLIT + "\n")
    assert len(printed) == len(outputs) + 1
    return list(zip(printed, outputs, strict=False))
