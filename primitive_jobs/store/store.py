"""`SweepStore`: results in a file, which outlive the program that has made them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .._common.signatures import Self
from ..options import check_bool, check_iterable, shown
from ..status import JobStatus
from . import checkpoints
from .database import Database
from .functions import OnChange, StoredFunction
from .rows import StoredRow
from .work import Work, check_text

if TYPE_CHECKING:
    from pandas import DataFrame

P = ParamSpec("P")
T = TypeVar("T")

_SOME = 500  # keys in one question


class SweepStore:
    """Keeps the results of functions in a file, so that each point runs once.

    ::

        with JobPool() as pool, SweepStore("ising.db") as store:
            ising = store.function(simulate)
            for row in track(ising.sweep(points, pool)):
                print(row.arguments, row.result)

    A program that was killed at point 60 of 100 runs 40 the next time; a point that had kept
    something by `checkpoint` goes on from there. Many may read a store while one program writes.

    As a context manager it waits at the end for what it runs, until that is written; if the block
    ends by an exception, it cancels that first, and tries for 5 s to write what there is.

    Results are pickles, which are code: open only files that you trust. What is plain (numbers,
    texts, lists and dicts of them) can be looked at without unpickling anything.

    Args:
        path: Of the file, on a local disk; it is made if there is none, readable by its owner
            alone. Results of 128 KB or more, and checkpoints, are files in a folder beside it, of
            the same name with ``.d`` behind it.

    Raises:
        TypeError, ValueError: ``path`` is no path of a file.
        StoreError: The file is no store, damaged, of a later release, or cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else path
        if not isinstance(name, str):
            raise TypeError(f"path must be that of a file, not {shown(path)}")
        if not name or "\0" in name:
            raise ValueError(f"path must be that of a file, not {name!r}")
        self.path = os.path.realpath(name)
        self._work = Work(Database(self.path))
        weakref.finalize(self, self._work.let_end).atexit = False

    def function(
        self,
        function: Callable[P, T],
        *,
        name: str | None = None,
        version: str | int | None = None,
        key: Callable[..., object] | None = None,
        ignore: str | Iterable[str] = (),
        on_change: OnChange = "refuse",
        retry_errors: bool = True,
    ) -> StoredFunction[P, T]:
        """Return a function whose results are kept here.

        A point is known by its arguments, with defaults, and by the pool's seed, if that has one:
        then what is random in it follows from the seed and the point alone, not from how many ran
        before.

        Args:
            function: What is called.
            name: Under which its results are kept; default: the function's own.
            version: Of its code: results of another one are not taken for these. With it, changed
                code is no error.
            key: Called as the function is, it returns what tells a call from others; default: its
                arguments. A job among these, which stands for its result, needs one.
            ignore: Names of arguments that make no difference, such as ``verbose``.
            on_change: What to do where the function's code, or that of a function of yours which it
                calls, is not what it was when results were stored: "refuse" raises
                `StaleResultsError`, "keep" takes those results, "rerun" makes them anew. Of this
                follows nothing is deleted.
            retry_errors: Whether points that failed run again; default True. Those that were
                cancelled always do.

        Raises:
            TypeError, ValueError: An argument is wrong; the code of the function cannot be looked
                at (of a lambda, of C), and there is no ``version``.
        """
        return StoredFunction(
            self,
            self._work,
            function,
            name=name,
            version=version,
            key=key,
            ignore=ignore,
            on_change=on_change,
            retry_errors=retry_errors,
        )

    def rows(
        self, name: str | None = None, status: JobStatus | str | None = None
    ) -> Iterator[StoredRow]:
        """Yield what is stored, in the order it was written, while others may write.

        Args:
            name: Only of the function of this name.
            status: Only rows of this status: DONE, ERROR or CANCELLED.

        Raises:
            StoreError: The file cannot be read.
            ValueError: There is no such status.
        """
        return self._work.rows(name, status)

    def result(self, key: str) -> Any:
        """Return the result of the point of this key; see `StoredRow.result`.

        Raises:
            LookupError: There is no such row.
            Exception: As `StoredRow.result`.
        """
        row = self._work.database.find([check_text("key", key)]).get(key)
        if row is None:
            raise LookupError(f"{self.path} has no row {key}")
        return row.result

    def forget(self, name: str | None = None, *, keys: Iterable[str] | None = None) -> int:
        """Delete all rows of a function, or those of some keys, and what their jobs have kept.

        Returns:
            How many rows there were.

        Raises:
            TypeError: There is neither, or both.
            StoreBusyError: Another program writes to the store.
            StoreError: The file cannot be written to.
        """
        if (name is None) == (keys is None):
            raise TypeError("forget() takes the name of a function, or keys=[...]; never both")
        folder = self._work.database.folder
        if name is not None:
            question = "SELECT key FROM rows WHERE name = ?"
            found = self._work.database.ask(question, [check_text("name", name)])
            unfinished = checkpoints.of_function(folder, name)
            given = list(dict.fromkeys([*(key for (key,) in found), *unfinished]))
        else:
            assert keys is not None, "one of both is there"
            given = list(dict.fromkeys(check_iterable("keys", "keys", keys)))
        writer = self._work.begin()
        gone: list[str] = []
        files: list[Path] = []

        def delete(connection: sqlite3.Connection) -> None:
            for start in range(0, len(given), _SOME):
                some = given[start : start + _SOME]
                marks = ",".join("?" * len(some))
                question = f"SELECT key, file FROM rows WHERE key IN ({marks})"
                for key, file in connection.execute(question, some).fetchall():
                    gone.append(key)
                    files.extend([] if file is None else [folder / file])
                connection.execute(f"DELETE FROM rows WHERE key IN ({marks})", some)
                connection.execute(f"DELETE FROM contents WHERE key IN ({marks})", some)

        writer.call(delete)
        for file in files:
            with contextlib.suppress(OSError):
                file.unlink()
        for key in given:
            checkpoints.forget(folder, key)
        return len(gone)

    def to_pandas(self, name: str, *, load: bool = False) -> DataFrame:
        """Return the rows of a function as a table, one column for each argument.

        The other columns are ``status``, ``result``, ``duration``, ``ended``, ``attempts``,
        ``error``, ``version``, ``seed`` (that of the pool) and ``key``, which is the index; of a
        result that is a dict there is a column for each of its keys. Where an argument is called
        so, the other one is ``row.status``, say, or ``result.T``.

        Args:
            name: Of the function.
            load: Whether results that are more than numbers, texts, lists and dicts of them are
                unpickled, which runs code; default False: None stands for them.

        Raises:
            ImportError: There is no pandas; the extra ``pandas`` brings it.
            StoreError: The file cannot be read.
        """
        from .tables import to_pandas

        check_bool("load", load)
        return to_pandas(self.rows(check_text("name", name)), load=load)

    def close(self) -> None:
        """Take no call any more, wait for what runs, and let go of the file; again is allowed.

        Raises:
            StoreError: Results could not be written.
        """
        self._work.end(cancel=False)

    def __enter__(self) -> Self:
        self._work.check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._work.end(cancel=kind is not None)

    def __repr__(self) -> str:
        return f"<SweepStore {self.path}>"


__all__ = ["SweepStore"]
