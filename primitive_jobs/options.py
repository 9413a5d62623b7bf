"""Checks of what a caller may set: `JobOptions` for a job, and the helpers for every other number.

A wrong value raises a `TypeError` or `ValueError` that names the argument, what it got and what
is right; nothing is ever coerced in silence.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import string
import threading
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR = 0x20, 0x80, 0x200  # as in `inspect`
UNFIT = CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR
_CALLED = ("function", "fn")


def check_seconds(name: str, value: object, *, positive: bool = False) -> float | None:
    """Return ``value`` as seconds, None for None, infinity and what is as good as that (no limit).

    Raises:
        TypeError: It is no real number (a bool is none).
        ValueError: It is NaN, or ``positive`` is asked for and it is not above 0.
    """
    if value is None:
        return None
    if not _is_number(value):
        raise TypeError(f"{name} must be a number of seconds or None, not {shown(value)}")
    seconds = float(value)
    if math.isnan(seconds):
        raise ValueError(f"{name} must be a number of seconds or None, not NaN")
    if positive and seconds <= 0:
        raise ValueError(f"{name} must be greater than 0 seconds (None is no limit), not {value!r}")
    return None if seconds > threading.TIMEOUT_MAX else seconds


def _is_number(value: object, *, whole: bool = False) -> TypeGuard[float]:
    """Whether it is a real (or a ``whole``) number, of whatever type; a bool is none."""
    if type(value) is int or (type(value) is float and not whole):
        return True
    import numbers  # which nobody else needs

    kind = numbers.Integral if whole else numbers.Real
    return isinstance(value, kind) and not isinstance(value, bool)


def shown(value: object) -> str:
    """Type and value for a message, whatever its ``__repr__`` does."""
    kind = str(type.__dict__["__name__"].__get__(type(value)))
    try:
        return f"{kind} {value!r}"
    except Exception:  # noqa: BLE001 - it is somebody else's
        return kind


def check_count(name: str, value: object, *, least: int = 1) -> int:
    """Return ``value`` as an int of at least ``least``.

    Raises:
        TypeError: It is no integer (a bool is none).
        ValueError: It is below ``least``.
    """
    count = check_int(name, value)
    if count < least:
        bound = f"greater than {least - 1}" if least > 0 else f"{least} or more"
        try:
            given = str(count)
        except ValueError:  # it has more digits than Python writes
            given = shown(count)
        raise ValueError(f"{name} must be {bound}, not {given}")
    return count


def check_int(name: str, value: object) -> int:
    """Return ``value`` as an int; raise `TypeError` for anything else, bool included."""
    if not _is_number(value, whole=True):
        raise TypeError(f"{name} must be an int, not {shown(value)}")
    return int(value)


_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt]?)(i?)b|([kmgt])(i?))?\s*", re.IGNORECASE)
LEAST_SIZE = 1_000_000  # bytes: an interpreter alone takes ten times as much
_LIKELY_GIGABYTES = 64  # whoever writes more without a unit means megabytes
_MOST_LIKELY = 16384  # and beyond that bytes
_SIZES = "a number of bytes or a text like '500 MB', '2G' or '2 GiB'"


def check_bytes(name: str, value: object) -> int | None:
    """Return ``value``, a number of bytes or a text like "500 MB", "2G" or "2 GiB", as bytes.

    None and infinity are None (no limit). K, M, G and T, with or without a B, are powers of 1000;
    Ki, Mi, Gi and Ti of 1024. Case and spaces do not matter.

    Raises:
        TypeError: It is neither a real number (a bool is none) nor a str.
        ValueError: It is NaN, below 1 MB, or a text that says no size.
    """
    if value is None:
        return None
    unit = False
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise ValueError(f"{name} must be {_SIZES}, not {value!r}")
        number, prefix, binary, other_prefix, other_binary = match.groups("")
        prefix = (prefix or other_prefix).lower()
        base = 1024 if binary or other_binary else 1000
        unit = not value.rstrip()[-1].isdecimal()
        size = float(number) * base ** " kmgt".index(prefix or " ")
    elif not _is_number(value):
        raise TypeError(f"{name} must be {_SIZES}, or None, not {shown(value)}")
    else:
        size = float(value)
    if not size >= LEAST_SIZE:
        raise ValueError(f"{name} must be at least 1 MB, not {value!r}{_meant(size, unit=unit)}")
    return None if size == math.inf else int(size)


def _meant(size: float, *, unit: bool) -> str:
    """What to say to whoever gave so many bytes, probably without a thought of a unit."""
    if not size > 0:
        return " (None is no limit)"
    told = f", which is {size:g} byte{'s' * (size != 1)}"
    if unit or size > _MOST_LIKELY:
        return told
    likely = f"{size:g}{'GB' if size <= _LIKELY_GIGABYTES else 'MB'}"
    return f"{told}: a number without a unit counts bytes; write {likely!r} if that is meant"


def check_callable(name: str, value: object) -> None:
    """Raise `TypeError` unless ``value`` can be called, and runs when it is.

    An async or generator function only makes an object, which cannot leave its process.
    """
    if not callable(value):
        hint = (
            "; for a call f(x), give f and x: (f, x) instead of (f(x))" if name in _CALLED else ""
        )
        raise TypeError(f"{name} must be callable, not {shown(value)}{hint}")
    inner: Any = value
    while type(inner) is functools.partial:
        inner = inner.func
    if type(inner) is MethodType:
        inner = inner.__func__  # of whatever can be called
    flags = inner.__code__.co_flags if type(inner) is FunctionType else 0
    if flags & (CO_COROUTINE | CO_ASYNC_GENERATOR):
        raise TypeError(
            f"{name} must be callable without await, not the async {shown(value)}: give a "
            "function that runs it, as (lambda: asyncio.run(f(x)))"
        )
    if flags & CO_GENERATOR:
        raise TypeError(
            f"{name} must be callable to the end, not the generator {shown(value)}: give a "
            "function that uses it up, as (lambda: list(f(x)))"
        )


def check_bool(name: str, value: object) -> None:
    """Raise `TypeError` unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {shown(value)}")


def check_grace(value: object) -> float:
    """Return ``value``, the ``grace`` of a cancel or a job, in seconds.

    Raises:
        TypeError: It is no real number (a bool is none).
        ValueError: It is NaN, negative or infinite.
    """
    return _check_span("grace", value)


def check_delay(value: object) -> float:
    """Return ``value``, a ``retry_delay``, in seconds.

    Raises:
        TypeError: It is no real number (a bool is none).
        ValueError: It is NaN, negative or infinite.
    """
    return _check_span("retry_delay", value)


def _check_span(name: str, value: object) -> float:
    """Return ``value`` as seconds that end: from 0 on, and finite."""
    if value is None:
        raise TypeError(f"{name} must be a number of seconds, not None")
    seconds = check_seconds(name, value)
    if seconds is None or seconds < 0:
        raise ValueError(f"{name} must be a finite number of seconds from 0 on, not {value!r}")
    return seconds


def check_retry_on(value: object, retries: int) -> tuple[type[BaseException], ...] | None:
    """Return ``value``, an exception class or a tuple of them, as such a tuple; None for none.

    Raises:
        TypeError: It is neither.
        ValueError: There are no ``retries`` that it could count against.
    """
    given = value if isinstance(value, tuple) else () if value is None else (value,)
    kinds: list[type[BaseException]] = []
    for kind in given:
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            what = "an exception class, a tuple of them, or None"
            raise TypeError(f"retry_on must be {what}, not {shown(value)}")
        kinds.append(kind)
    if kinds and retries < 1:
        text = "retry_on counts against retries, which must be 1 or more"
        raise ValueError(f"{text} with {shown(value)}, not {retries}")
    return tuple(kinds) or None


def check_iterable(name: str, what: str, value: Iterable[T]) -> Iterator[T]:
    """Return an iterator over ``value``; raise `TypeError` where it has none.

    ``what`` says in the message what it should be an iterable of.
    """
    if not isinstance(value, Iterable) and not hasattr(type(value), "__getitem__"):
        raise TypeError(f"{name} must be an iterable of {what}, not {shown(value)}")
    try:
        return iter(value)
    except TypeError as error:  # an array of no dimension, say
        raise TypeError(f"{name} must be an iterable of {what}: {error}") from error


def check_columns(iterables: tuple[Iterable[Any], ...]) -> list[Iterator[Any]]:
    """Return iterators over what a ``map`` is given; raise `TypeError` where there is none."""
    columns = []
    for place, iterable in enumerate(iterables, 1):
        if place > 1 and isinstance(iterable, (int, float)):
            raise TypeError(
                f"iterable {place} of map() must be an iterable of arguments, not "
                f"{shown(iterable)}; chunksize and timeout are given by name: chunksize={iterable}"
            )
        columns.append(check_iterable(f"iterable {place} of map()", "arguments", iterable))
    return columns


def check_resources(name: str, value: object) -> dict[str, int]:
    """Return names with how many there are of each, from 1 on; an empty dict for None.

    Raises:
        TypeError: It is no mapping of str to int.
        ValueError: A name is empty, or a number below 1.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict like {{'gpu': 1}} or None, not {shown(value)}")
    found = {}
    for key, count in value.items():
        if not isinstance(key, str):
            raise TypeError(f"{name} must map str to int, not {shown(key)} to {count!r}")
        if not key:
            raise ValueError(f"{name}: in {{{key!r}: {count!r}}} a name is empty")
        found[str.__str__(key)] = check_count(f"{name}[{key!r}]", count)
        if count > _MOST_TOKENS:
            raise ValueError(
                f"{name}[{key!r}] must be at most {_MOST_TOKENS:,}, not {count!r}: each token is "
                "one that a job may have to itself, so count in larger units"
            )
    return found


_MOST_TOKENS = 10_000  # of one name
CPUS, MEMORY = 0, 1
"""What a job may lack; a name stands for tokens of that name."""

Lacked = int | str  # one of these
_GB, _MB = 1_000_000_000, 1_000_000


class Needs(tuple[int, int, tuple[tuple[str, int], ...]]):
    """CPUs, bytes of memory (0: none are asked for), and tokens: names with how many, sorted."""

    __slots__ = ()

    def __new__(
        cls, cpus: int = 1, memory: int = 0, tokens: Iterable[tuple[str, int]] = ()
    ) -> Self:
        """Make them of what an option says."""
        return super().__new__(cls, (cpus, memory, tuple(sorted(tokens))))

    @property
    def cpus(self) -> int:
        """How many of the pool's workers it takes."""
        return self[0]

    @property
    def memory(self) -> int:
        """Bytes that have to be there; 0: any number will do."""
        return self[1]

    @property
    def row(self) -> Needs:
        """The same, with the memory rounded up by an eighth at most.

        Whoever says of each job what that will take makes a hundred rows by it, not one for each.
        """
        cpus, memory, tokens = self
        shift = max(0, memory.bit_length() - 4)
        return Needs(cpus, -(-memory >> shift) << shift, tokens) if shift else self

    @property
    def tokens(self) -> tuple[tuple[str, int], ...]:
        """Names with how many, sorted."""
        return self[2]


def size(count: float) -> str:
    """So many bytes in words: in GB from one on."""
    return f"{count / _GB:.1f} GB" if count >= _GB else f"{count / _MB:.0f} MB"


class Limits(NamedTuple):
    """What a pool has to know of a job's options: numbers, and nothing of the user's."""

    priority: int = 0
    timeout: float | None = None  # s
    memory_limit: int | None = None  # bytes
    retries: int = 0
    grace: float = 0.0  # s
    retry_delay: float = 0.0  # s
    needs: Needs | None = None

    @property
    def unlimited(self) -> bool:
        """Whether any worker will do, and nobody has to watch such a job's time or memory."""
        return self.timeout is None and self.memory_limit is None and self.needs is None


DEFAULT_LIMITS = Limits()


def check_folder(name: str, value: object) -> str | None:
    """Return a path as an absolute one, None for None; anything else is a `TypeError`."""
    if value is None:
        return None
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(path, str):
        raise TypeError(f"{name} must be a path or None, not {shown(value)}")
    if not path or "\0" in path:
        raise ValueError(f"{name}: {path!r} is no possible path")
    return os.path.abspath(path)  # noqa: PTH100 - `Path` is not needed otherwise


def check_env(env: object) -> dict[str, str]:
    """Return environment variables as a dict; `TypeError` or `ValueError` if one is none."""
    if env is None:
        return {}
    if not isinstance(env, Mapping):
        raise TypeError(f"env must be a mapping of str to str, not {type(env).__name__}")
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"env must map str to str, not {name!r} to {value!r}")
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"env: {name!r}={value!r} is no possible environment variable")
    return dict(env)


OUTPUTS = ("inherit", "capture", "tee")
_FIELDS = ("name", "id")


def check_output(value: object) -> str | None:
    """Return an option ``output`` as a str; `TypeError` or `ValueError` if it is none."""
    if value is None or (isinstance(value, str) and value in OUTPUTS):
        return value
    what = "'inherit', 'capture', 'tee' or a path as 'logs/{name}-{id}.log'"
    pattern = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(pattern, str):
        raise TypeError(f"output must be {what}, not {shown(value)}")
    if isinstance(value, str) and "/" not in value and "{" not in value:
        raise ValueError(f"output must be {what}, not {value!r}: a path has a '/', as './{value}'")
    try:
        fields = [field for field in string.Formatter().parse(pattern) if field[1] is not None]
        right = all(name in _FIELDS and not (spec or turn) for _, name, spec, turn in fields)
    except ValueError as error:
        raise ValueError(f"output: {pattern!r} is no pattern of a path: {error}") from error
    if not right:
        raise ValueError(f"output: {pattern!r} may have the fields {{name}} and {{id}} alone")
    if not pattern or "\0" in pattern or pattern.endswith("/"):
        raise ValueError(f"output: {pattern!r} is no possible path of a file")
    return pattern


@dataclasses.dataclass(frozen=True, slots=True)
class JobOptions:
    """The options of one job: what to say of it besides its function and arguments.

    They are given by name to `JobPool.options` and `PrimitiveJob.submit`.

    Attributes:
        name: Shown in messages and in ``repr``; default: the function's name.
        metadata: A dict that travels with the job, copied here; default: empty.
        timeout: Seconds the job may run, from RUNNING on, per attempt; then its process is
            killed, after the ``grace`` if there is one, and it ends with `JobTimeoutError`, also
            if the function still returns in that grace. Default None: no limit.
        memory_limit: Resident memory that the job's process and all below it may hold, in bytes
            (1 MB at least) or as a text: "500 MB" and "2G" are powers of 1000, "2 GiB" one of
            1024. The pool measures it ten times a second; beyond the limit it kills them, and the
            job ends with `JobMemoryError`. The measure includes the interpreter's own tens of MB
            and what earlier jobs left in the worker (a worker that is above the limit before the
            job starts is replaced first). Where the pool cannot measure, since /proc is missing or
            hides processes, the job ends with a `JobError`. Default None: the pool's.
        retries: How often the job is started again after its worker died (a crash, a kill from
            outside, the kernel's OOM killer), and after exceptions of its own that ``retry_on``
            names; never after a cancel or a limit that it passed. Default 0.
        priority: An int; higher runs first, first come first served within. Default 0.
        grace: Seconds that a running job has between SIGTERM, which raises SystemExit in it, and
            SIGKILL, when its ``timeout`` is over or it is cancelled. It holds for every cancel that
            names no grace itself: of a task that awaits the job, of a future, by `gather` and
            `race`, by a pool that is shut down, by ``on_exit="cancel"``. A job that passes its
            ``memory_limit`` gets no grace, since memory does not wait; nor does any job after a
            Ctrl-C that ends the program, or where a signal such as SIGTERM ends it, since the
            program runs no code then: ``signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))``
            makes that an end like any other, as ``on_exit`` says. Default 0: SIGKILL at once.
        cwd: The working directory of the job, a path; one that is relative is taken from where the
            program is when the option is given. Where it is no directory, the job raises
            `FileNotFoundError` or `NotADirectoryError`. Default None: the worker's.
        env: Environment variables that the job has besides the worker's, as a dict of str to str.
            What a library has read as it was imported, such as ``OMP_NUM_THREADS``, does not change
            by it: the pool's ``env`` and ``threads_per_worker`` are for that. Default None.
        keep_call: Whether the call stays in memory, as it was serialized, when the job is over, so
            that `PrimitiveJob.resubmit` can submit it again. Default False: only that of a job does
            which has a `checkpoint` and has not returned.
        output: Where goes what the job prints, C code and child processes included: "inherit", to
            where the worker's goes; "capture", to `PrimitiveJob.output`; "tee", there and, line by
            line with the job's name, to this program's ``sys.stdout``; or the path of a file, to
            whose end it is added. In a path ``{name}`` and ``{id}`` stand for those of the job, of
            the name what is safe there; the path is taken from where the program is at the submit,
            and its folders are made. A path as a str has a "/" or such a field. Default None: the
            pool's.

        retry_on: An exception class, or a tuple of them: where the job raises what ``except`` with
            these would catch, it is started again, too. It counts against ``retries``, which has to
            be 1 or more. An exception that arrives as a `JobError`, such as `SystemExit`, counts by
            the class that was raised; a group counts as what it is, not by what it holds. A call or
            a result that cannot be serialized, or a ``cwd`` that is not there, does not count. When
            there is no retry left, the last exception is raised, and those of the last three
            attempts before it are its notes. `map` makes each call a job of its own then, whatever
            its ``chunksize``. Default None: no exception.
        retry_delay: Seconds before the first retry, after a death as after an exception; before
            each further one it is twice as long, up to 60 (or to what is given, if that is more).
            Meanwhile the job is QUEUED, and needs no worker; a cancel ends it at once. Default 0.
        cpus: How many of the pool's ``max_workers`` the job takes. It runs in a worker that was
            started with the environment for so many times ``threads_per_worker`` threads, where the
            program's own environment and the pool's ``env`` do not say how many; such a worker
            serves jobs of the same ``cpus`` alone. If the pool is made smaller than that, it takes
            all. Default 1. On a cluster more than 1 is a ValueError at the submit.
        memory: What the job needs, in bytes or as a text like "4 GB": it starts when so much is
            there beside what running jobs have reserved and do not use yet; 5 % of what is
            available (at least 64, at most 512 MB) is left to others. Without a ``memory_limit``
            that is its limit, too. Where the pool has no budget (its own ``memory``), what the
            machine and each cgroup above the program have left is looked at, at most ten times a
            second; if nothing of the pool runs and there is too little, one job starts all the
            same, which is logged.
            Smaller jobs pass one that waits for room; after 30 s the first one in order keeps what
            it lacks. Default None: it starts whatever there is. On a cluster a ValueError at the
            submit.
        resources: How many of the pool's ``resources`` the job takes, by name, as ``{"gpu": 1}``;
            `job_resources` says there which ones. They are given back when it has ended and, if its
            worker was killed, nothing is left of that: what cannot be killed keeps them. At most
            10,000 of a name. Default None. More of these three than the
            pool can ever give is a ValueError at the submit.

    Raises:
        TypeError, ValueError: On construction, naming the option that is wrong.
    """

    name: str | None = None
    metadata: Mapping[str, Any] | None = None
    timeout: float | None = None
    priority: int = 0
    memory_limit: float | str | None = None
    retries: int = 0
    grace: float = 0.0
    cwd: str | os.PathLike[str] | None = None
    env: Mapping[str, str] | None = None
    keep_call: bool = False
    output: str | os.PathLike[str] | None = None
    retry_on: type[BaseException] | tuple[type[BaseException], ...] | None = None
    retry_delay: float = 0.0
    cpus: int = 1
    memory: float | str | None = None
    resources: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.name, str):
            object.__setattr__(self, "name", str.__str__(self.name))  # without a subclass's ways
        elif self.name is not None:
            raise TypeError(f"name must be a str or None, not {shown(self.name)}")
        if isinstance(self.metadata, Mapping):
            object.__setattr__(self, "metadata", dict(self.metadata))
        elif self.metadata is not None:
            raise TypeError(f"metadata must be a dict or None, not {type(self.metadata).__name__}")
        object.__setattr__(self, "timeout", check_seconds("timeout", self.timeout, positive=True))
        object.__setattr__(self, "priority", check_int("priority", self.priority))
        object.__setattr__(self, "memory_limit", check_bytes("memory_limit", self.memory_limit))
        object.__setattr__(self, "retries", check_count("retries", self.retries, least=0))
        object.__setattr__(self, "grace", check_grace(self.grace))
        object.__setattr__(self, "cwd", check_folder("cwd", self.cwd))
        object.__setattr__(self, "env", check_env(self.env) or None)
        check_bool("keep_call", self.keep_call)
        object.__setattr__(self, "output", check_output(self.output))
        object.__setattr__(self, "retry_on", check_retry_on(self.retry_on, self.retries))
        object.__setattr__(self, "retry_delay", check_delay(self.retry_delay))
        object.__setattr__(self, "cpus", check_count("cpus", self.cpus))
        object.__setattr__(self, "memory", check_bytes("memory", self.memory))
        resources = check_resources("resources", self.resources)
        object.__setattr__(self, "resources", resources or None)

    @property
    def limits(self) -> Limits:
        """Those of them that the pool sees to."""
        limit, memory = self.memory_limit, self.memory
        assert limit is None or isinstance(limit, int), "made an int when this was made"
        assert memory is None or isinstance(memory, int), "made an int when this was made"
        numbers = self.retries, self.grace, self.retry_delay
        needs = None
        if self.cpus > 1 or memory or self.resources:
            needs = Needs(self.cpus, memory or 0, (self.resources or {}).items())
        return Limits(self.priority, self.timeout, limit or memory, *numbers, needs)

    @property
    def told(self) -> dict[str, Any] | None:
        """What the job itself is told of them: those that are not the default; None: none is."""
        told = {
            "timeout": self.timeout,
            "priority": self.priority,
            "memory_limit": self.memory_limit,
            "retries": self.retries,
            "grace": self.grace,
            "cwd": self.cwd,
            "env": self.env,
            "keep_call": self.keep_call,
            "output": None if self.output == "inherit" else self.output,
            "retry_on": self.retry_on,
            "retry_delay": self.retry_delay,
            "cpus": None if self.cpus == 1 else self.cpus,
            "memory": self.memory,
            "resources": self.resources,
        }
        return {name: value for name, value in told.items() if value} or None

    def replace(self, changes: Mapping[str, Any]) -> JobOptions:
        """Return these options with ``changes`` made; an unknown name is a `TypeError`."""
        if not changes:
            return self
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise TypeError(f"unknown option {name!r}; the options are {', '.join(known)}")
        if changes.get("output", "") is None:
            changes = {name: value for name, value in changes.items() if name != "output"}
        return dataclasses.replace(self, **changes)


DEFAULT_OPTIONS = JobOptions()


def check_initargs(initargs: object) -> tuple[Any, ...]:
    """Return an initializer's arguments as a tuple; what is no iterable is a `TypeError`."""
    # A text is iterable too, but whoever gives one means a single argument.
    if isinstance(initargs, (str, bytes, bytearray)) or not isinstance(initargs, Iterable):
        raise TypeError(
            f"initargs must be a tuple of the initializer's arguments, not {shown(initargs)}"
        )
    return tuple(initargs)


def check_preload(preload: Iterable[str]) -> tuple[str, ...]:
    """Return names of modules as a tuple; `TypeError` or `ValueError` if one is none."""
    what = "names of modules"
    if isinstance(preload, str):
        raise TypeError(f"preload must be an iterable of {what}, not {shown(preload)}")
    names = tuple(check_iterable("preload", what, preload))
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"preload must be an iterable of {what}; one is {shown(name)}")
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"preload must be an iterable of {what}, which {name!r} is not")
    return names
