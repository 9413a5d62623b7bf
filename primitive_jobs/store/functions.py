"""`StoredFunction`: a function whose results a store keeps; and whether its code has changed."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, NamedTuple, ParamSpec, TypeVar

from .._common.naming import call_name
from ..base_pool import Submitter
from ..errors import StaleResultsError
from ..job import PrimitiveJob
from ..options import check_bool, check_callable, check_iterable, shown
from ..pool import find_pool
from ..status import JobStatus
from .canonical import module_name
from .code import changes, code_of
from .jobs import Origin, Point, StoredJob
from .keys import Binding, call_of, from_arguments, from_key_value, key_of, seed_words
from .rows import StoredRow
from .sweep import Sweep
from .work import Work

P = ParamSpec("P")
T = TypeVar("T")

OnChange = Literal["refuse", "keep", "rerun"]
_WAYS = ("refuse", "keep", "rerun")


class _Before(NamedTuple):
    """Rows that are stored under a name, of one code."""

    module: str
    code: str
    parts: str
    version: str | None
    rows: int
    first: float
    last: float


class StoredFunction(Generic[P, T]):
    """A function whose results a store keeps; made by `SweepStore.function`.

    Attributes:
        name: Under which they are kept.
        version: As given; None: none was.
    """

    def __init__(
        self,
        store: object,
        work: Work,
        function: Callable[P, T],
        *,
        name: str | None,
        version: str | int | None,
        key: Callable[..., object] | None,
        ignore: str | Iterable[str],
        on_change: OnChange,
        retry_errors: bool,
    ) -> None:
        check_callable("function", function)
        if name is not None and not (isinstance(name, str) and name):
            raise TypeError(f"name must be a str or None, not {shown(name)}")
        if version is not None and (
            isinstance(version, bool) or not isinstance(version, (str, int))
        ):
            raise TypeError(f"version must be a str, an int or None, not {shown(version)}")
        if key is not None:
            check_callable("key", key)
        if on_change not in _WAYS:
            raise ValueError(f"on_change must be one of {', '.join(_WAYS)}, not {shown(on_change)}")
        check_bool("retry_errors", retry_errors)
        names = (ignore,) if isinstance(ignore, str) else check_iterable("ignore", "names", ignore)
        self.name = call_name(function) if name is None else str(name)
        self.version = None if version is None else str(version)
        self._store = store  # lives as long as this
        self._work = work
        self._function = function
        self._key = key
        self._on_change = on_change
        self._retries_errors = retry_errors
        self._binding = Binding(function, names)
        module = getattr(function, "__module__", None) or type(function).__module__
        self._module = module_name(module)
        self._checked: Origin | None = None  # of which no rows of other code are there
        self._origin()  # which raises where that cannot be told

    def _origin(self) -> Origin:
        """What the code is now: in a notebook, what a function uses may have changed since."""
        try:
            code = code_of(self._function)
        except (TypeError, ValueError):
            if self.version is None:
                raise
            return Origin(self.name, self.version, self._module, "", {})
        return Origin(self.name, self.version, self._module, code.digest, dict(code.parts))

    def submit(
        self, pool: Submitter | None, /, *args: P.args, **kwargs: P.kwargs
    ) -> PrimitiveJob[T]:
        """Return the job of one call: DONE at once if that is stored; else it is submitted.

        A call that runs already, for this store, has one job. Each submit looks whether the code
        has changed, in some ms: for many calls `sweep` is faster.

        Args:
            pool: Any pool, or what its `options` returns; None: `default_pool()`.
            *args: The function's positional arguments.
            **kwargs: Its keyword arguments.

        Raises:
            StaleResultsError: The function has changed.
            StoreBusyError: Another program writes to the store.
            StoreError: The store is closed, or its file cannot be used.
            PoolClosedError: The pool was shut down.
            TypeError: The function does not take the arguments, or they make no key.
        """
        sweep = self._sweep([(tuple(args), dict(kwargs))], None, pool)
        return sweep.jobs()[0]

    def sweep(
        self,
        points: Iterable[Any],
        pool: Submitter | None = None,
        *,
        keys: Iterable[object] | None = None,
    ) -> Sweep[T]:
        """Run the function for each point that is not stored yet; return at once.

        Args:
            points: A dict is keyword arguments, a tuple positional ones, anything else a single
                argument. All are taken, and their arguments pickled, before this returns. Points
                that are the same are one.
            pool: Any pool, or what its `options` returns; default: `default_pool()`.
            keys: What tells each point from the others, as many as there are points; default: its
                arguments, or what ``key`` of `SweepStore.function` makes of them.

        Returns:
            The rows, as they come.

        Raises:
            Exception: As `submit`.
            ValueError: There are more points than keys, or fewer.
        """
        if isinstance(points, (str, bytes, Mapping)):
            raise TypeError(
                f"points must be an iterable of points, not {shown(points)}: a single point goes "
                "into a list, as in sweep([point])"
            )
        taken = [call_of(point) for point in check_iterable("points", "points", points)]
        given = None if keys is None else list(check_iterable("keys", "keys", keys))
        if given is not None and len(given) != len(taken):
            raise ValueError(f"there are {len(taken)} points, but {len(given)} keys")
        return self._sweep(taken, given, pool)

    def _sweep(
        self,
        calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]],
        keys: Sequence[object] | None,
        pool: Submitter | None,
    ) -> Sweep[T]:
        self._work.begin()
        link, options = find_pool(pool)
        link.check_open()
        origin = self._origin()
        if origin != self._checked:
            self._check_code(origin)
            self._checked = origin
        root = None if link.seeds is None else link.seeds.root
        points: dict[str, Point] = {}
        order = []
        for place, (args, kwargs) in enumerate(calls):
            arguments = self._binding.bind_call(args, kwargs)
            if keys is not None:
                content = from_key_value(keys[place])
            elif self._key is not None:
                content = from_key_value(self._key(*args, **kwargs))
            else:
                content = from_arguments(self._binding.without_ignored(arguments))
            key = key_of(self.name, content, version=self.version, entropy=root)
            order.append(key)
            if key not in points:
                seed = None if link.seeds is None else link.seeds.of_words(seed_words(key))
                points[key] = Point(key, args, kwargs, arguments, seed)
        if options.name is None:
            options = options.replace({"name": self.name})
        held = self._work.link_to(link)
        jobs: list[StoredJob[T]] = []
        try:
            rows, pending = self._work.take(
                origin, self._function, points, functools.partial(self._is_good, origin), jobs
            )
            sweep = Sweep[T](self._work, self.name, order, rows, pending, jobs)
            self._work.submit(jobs, held, options)
        except BaseException:  # nobody has them, so none is to run
            self._work.drop(jobs)
            raise
        return sweep

    def _is_good(self, origin: Origin, row: StoredRow) -> bool:
        """Whether a point that has this row is not to be run again; raises as `_check_code`."""
        if row.status is JobStatus.CANCELLED:
            return False
        if row.status is JobStatus.ERROR and self._retries_errors:
            return False
        changed = self.version is None and row.code != origin.code
        if row.module != origin.module or (changed and self._on_change == "refuse"):
            self._check_code(origin)  # somebody has written it since that was called last
        return not (changed and self._on_change == "rerun")

    def rows(self, status: JobStatus | str | None = None) -> Iterator[StoredRow]:
        """Yield the rows of this function, as `SweepStore.rows` does."""
        return self._work.rows(self.name, status)

    # --- whether its code is the same ---------------------------------------------------------

    def _check_code(self, origin: Origin) -> None:
        """Raise where rows are of another function, or of other code, unless that is allowed."""
        known = self._before()
        for before in known:
            if before.module != origin.module:
                raise ValueError(
                    f"{self._work.database.path} has {before.rows} rows of {self.name}() in module "
                    f"{before.module!r}, and this one is in {origin.module!r}: give one of "
                    "them another name, as in store.function(f, name='other')"
                )
        if self.version is None and self._on_change == "refuse":
            stale = [one for one in known if one.version is None and one.code != origin.code]
            if stale:
                raise self._stale(stale, origin)

    def _before(self) -> list[_Before]:
        counted = ["DONE"] if self._retries_errors else ["DONE", "ERROR"]
        question = (
            "SELECT codes.module, codes.hash, codes.parts, rows.version, count(*), min(ended), "
            "max(ended) FROM rows JOIN codes ON codes.id = rows.code WHERE rows.name = ? AND "
            f"rows.status IN ({','.join('?' * len(counted))}) GROUP BY codes.id ORDER BY min(ended)"
        )
        return [_Before(*row) for row in self._work.database.ask(question, [self.name, *counted])]

    def _stale(self, stale: list[_Before], origin: Origin) -> StaleResultsError:
        count = sum(before.rows for before in stale)
        first, last = min(b.first for b in stale), max(b.last for b in stale)
        changed = changes(json.loads(stale[-1].parts), origin.parts)
        what = ", ".join(changed) or "its code"
        rows = "1 row is" if count == 1 else f"{count} rows are"
        error = StaleResultsError(
            f"{rows} stored of {self.name}() as it was before, of {_day(first)} to {_day(last)}; "
            f"changed since then: {what}. Nothing has run. In store.function(), give "
            "on_change='keep' to take those results as they are, on_change='rerun' to have them "
            "made anew as they are asked for, or version='2', say, to begin anew beside them"
        )
        error.changed = tuple(changed)
        return error

    def __repr__(self) -> str:
        version = "" if self.version is None else f", version {self.version}"
        return f"<StoredFunction {self.name}{version} in {self._work.database.path}>"


def _day(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))


__all__ = ["OnChange", "StoredFunction"]
