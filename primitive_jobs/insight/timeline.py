"""`Timeline`: what ran when on the workers of a pool, as plain data that can be drawn and saved."""

from __future__ import annotations

import os
from pathlib import Path

from .runs import Runs, summary


class Timeline(Runs):
    """What ran when on the workers of a pool; made by `BasePool.timeline`.

    It is plain data that can be pickled and knows no pool. A notebook shows it as a picture.

    Attributes:
        pool: What the pool is called in pictures.
        taken: When it was made, in seconds since the epoch.
        attempts: What workers did with jobs, in the order in which they began: the last 20,000
            that have ended, and those that were running. A job that was tried again has several;
            one that no worker began has none.
        left_out: How many ended before those.
        totals: How many attempts there ever were, and how much time of workers they took, by how
            they ended.
        memory: What was measured of workers while they had jobs with a memory limit, in order.
    """

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, whose name says in which form.

        - ``.svg``: a picture.
        - ``.html``: a page for a browser, in which the picture can be zoomed, and each attempt be
          looked at.
        - ``.json``: a trace for https://ui.perfetto.dev and chrome://tracing.

        None of them needs a network, or another file. One that is there is replaced.

        Args:
            path: The file.

        Raises:
            ValueError: The name ends in another way; nothing is written.
            OSError: The file cannot be written.
        """
        file = Path(path)
        match file.suffix.lower():
            case ".svg":
                text = self._repr_svg_()
            case ".html":
                from .page import page

                text = page(self)
            case ".json":
                from .trace_events import trace

                text = trace(self)
            case _:
                raise ValueError(
                    f"the file's name must end with .svg, .html or .json, not {file.name!r}"
                )
        file.write_text(text, encoding="utf-8")

    def _repr_svg_(self) -> str:
        """What a notebook shows."""
        from .svg import picture

        return picture(self)

    def __repr__(self) -> str:
        told = summary(self)
        return f"<{type(self).__name__} of {self.pool}: {'; '.join(told)}>"


__all__ = ["Timeline"]
