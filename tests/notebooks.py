"""`run_cells` runs code in a Jupyter kernel, in a process of its own: this file, as a program.

So that the packages of Jupyter are not loaded where the tests are, nor their threads and warnings.
It reads `cells.json` in the folder, a list of texts, and writes `outputs.json`, their outputs.

* ``notebook``: nbclient runs them as a notebook; an error ends it.
* ``interrupted``: one by one; where a cell's text has "INTERRUPTED", the kernel is interrupted as
  soon as the file "waiting" is there.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PATIENCE = 40.0  # s
AGAIN = 5.0  # s after which an interrupt that did nothing is repeated


def run_cells(mode: str, folder: Path, cells: list[str]) -> list[Any]:
    """Start that process; return the outputs of each cell."""
    (folder / "cells.json").write_text(json.dumps(cells), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, __file__, mode, str(folder)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((folder / "outputs.json").read_text(encoding="utf-8"))
    assert len(found) == len(cells)
    return list(found)


def text_of(outputs: list[Any]) -> str:
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


def prepare(folder: Path) -> None:
    """Have a kernel of this interpreter, and nothing written anywhere else."""
    spec = folder / "share" / "kernels" / "own"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    text = json.dumps({"argv": argv, "display_name": "own", "language": "python"})
    (spec / "kernel.json").write_text(text, encoding="utf-8")
    os.environ["JUPYTER_PATH"] = str(folder / "share")
    os.environ["JUPYTER_NO_CONFIG"] = "1"
    os.environ["JUPYTER_PLATFORM_DIRS"] = "1"
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    for name in ("HOME", "IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
        os.environ[name] = str(folder / "home")
    os.environ["JUPYTER_RUNTIME_DIR"] = str(folder / "run")
    (folder / "home").mkdir()
    (folder / "run").mkdir()


def run_notebook(cells: list[str], folder: Path) -> list[Any]:
    """What nbclient makes of them."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(
        notebook, kernel_name="own", timeout=int(PATIENCE), resources=resources
    ).execute()
    nbformat.write(notebook, folder / "ran.ipynb")
    return [cell.outputs for cell in notebook.cells]


def run_interrupted(cells: list[str], folder: Path) -> list[Any]:
    """What each has printed, and the name of what it raised."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="own")
    manager.start_kernel(cwd=str(folder))
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=PATIENCE)
        return [run_cell(manager, client, cell, folder / "waiting") for cell in cells]
    finally:
        client.stop_channels()
        manager.shutdown_kernel()


def run_cell(manager: Any, client: Any, cell: str, waiting: Path) -> tuple[str, str | None]:
    """Its output, and the name of what it raised."""
    printed: list[str] = []

    def take(message: Any) -> None:
        if message["header"]["msg_type"] == "stream":
            printed.append(message["content"]["text"])

    if "INTERRUPTED" not in cell:
        reply = client.execute_interactive(
            cell, timeout=PATIENCE, output_hook=take, stop_on_error=False
        )
        return "".join(printed), reply["content"].get("ename")
    number = client.execute(cell, stop_on_error=False)
    end = time.monotonic() + PATIENCE
    while not waiting.exists():
        assert time.monotonic() < end, cell
        time.sleep(0.01)
    waiting.unlink()
    manager.interrupt_kernel()
    while True:
        try:
            reply = client.get_shell_msg(timeout=AGAIN)
        except queue.Empty:
            # CPython loses a signal that comes right before a lock's wait: one presses it again.
            assert time.monotonic() < end, cell
            manager.interrupt_kernel()
            continue
        if reply["parent_header"].get("msg_id") == number:
            return "", reply["content"].get("ename")


def main(mode: str, folder: Path) -> None:
    prepare(folder)
    cells = json.loads((folder / "cells.json").read_text(encoding="utf-8"))
    outputs = (run_notebook if mode == "notebook" else run_interrupted)(cells, folder)
    (folder / "outputs.json").write_text(json.dumps(outputs), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
