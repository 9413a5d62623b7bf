"""Figures of pages: made by the code that the page shows, when the pages are built."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def plot_of(page: str, name: str) -> str:
    """Run all Python blocks of a page, and return the SVG that they save under this name.

    What is black is drawn in the colour of the text, as the page has it.

    Raises:
        RuntimeError: The code of the page fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "page.py"
        script.write_text("\n".join(_BLOCK.findall(page)), encoding="utf-8")
        command = [sys.executable, str(script)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the code of a page fails:\n{done.stderr}")
        picture = (Path(folder) / name).read_text(encoding="utf-8")
    return _coloured(picture[picture.index("<svg") :])


def _coloured(picture: str) -> str:
    return picture.replace("#000000", "currentColor")


__all__ = ["plot_of"]
