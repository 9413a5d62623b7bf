"""`demo --cluster`: a node is killed, and what happens is told, on a pipe and a terminal."""

from __future__ import annotations

import errno
import importlib.util
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from primitive_jobs.__main__ import main

COMMAND = [sys.executable, "-m", "primitive_jobs", "demo", "--cluster", "--quick"]
PATIENCE = 90  # s, for a machine that is busy with other things
needs_dask = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None, reason="distributed is not installed"
)


@needs_dask
@pytest.mark.timeout(PATIENCE + 20)
def test_on_a_pipe(tmp_path: Path) -> None:
    done = subprocess.run(
        COMMAND,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    text = done.stdout
    assert text.endswith("\n8 DONE, 0 CANCELLED, 1 ERROR\n")
    assert "\x1b" not in text
    (lost, others) = re.findall(
        r"^\[.*\] (node \d) is lost: its process \d+ was sent SIGKILL. It ran (.*)\.$",
        text,
        re.MULTILINE,
    )[0]
    assert "never ends" in others
    assert f"] never ends is RUNNING on {lost}\n" in text
    assert "] never ends is ERROR: WorkerDiedError, since its node was lost; it has no" in text
    assert re.search(
        r"^never ends: WorkerDiedError: .* was lost: its process ended$", text, re.MULTILINE
    )
    for name in re.findall(r"T=\d\.\d\d", others):
        if f"] {name} is QUEUED again, by its retry\n" in text:  # else it was quicker
            again = rf"\] {name} is RUNNING on (node \d).*, attempt 2\n"
            assert [node for node in re.findall(again, text) if node != lost]
            assert f"{name}: its first attempt was lost with {lost}, the next ran on node" in text
    assert len(re.findall(r"^\[.*\] T=.* is DONE: \|M\| = 0\.\d+$", text, re.MULTILINE)) == 8
    assert not list(tmp_path.iterdir())


@needs_dask
@pytest.mark.timeout(PATIENCE + 20)
def test_ctrl_c_on_a_terminal() -> None:
    """It goes to all processes of the terminal, the nodes among them."""
    parent, child = pty.openpty()
    take = "import fcntl, os, sys, termios; fcntl.ioctl(1, termios.TIOCSCTTY, 0); "
    take += "os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", take, *COMMAND], stdout=child, stderr=child, start_new_session=True
    )
    os.close(child)
    text = ""
    typed = False
    try:
        while chunk := _read(parent):
            text += chunk
            if not typed and "never ends is RUNNING" in text:
                typed = True
                os.write(parent, b"\x03")
        assert process.wait(PATIENCE) == 130
    finally:
        process.kill()
        process.wait()
        os.close(parent)
    assert "] never ends is CANCELLED\r\n" in text
    assert text.endswith("Interrupted: every job was cancelled.\r\n")
    assert "Traceback" not in text, text


def _read(terminal: int) -> str:
    """What there is to read; "" once no process holds the other side."""
    try:
        return os.read(terminal, 65536).decode()
    except OSError as error:
        if error.errno == errno.EIO:  # Linux has no end of file here
            return ""
        raise


def test_without_dask_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as exit_info:
        main(["demo", "--cluster"])
    assert exit_info.value.code == 2
    assert 'python -m pip install "distributed>=2024.8"' in capsys.readouterr().err


def test_workers_do_not_go_with_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["demo", "--cluster", "--workers", "2"])
    assert exit_info.value.code == 2
    assert "argument --workers: not allowed with --cluster" in capsys.readouterr().err
