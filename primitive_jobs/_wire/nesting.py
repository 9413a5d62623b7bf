"""How deep this process is nested in workers; a worker writes it, once, when it begins."""

from __future__ import annotations

cpu_share: int | None = None
"""In a worker: how many workers a pool nested in it should have. None elsewhere."""
depth = 0
"""In a worker: how deep workers are nested, 1 for those of the program. A fork of it has it too,
another program that a job starts has not."""
