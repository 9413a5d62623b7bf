"""`Unseen`: the failures of one pool that nobody has looked at, so that none stays in silence.

    job fails ─► Token ─┬─ somebody looks ─► nothing to be told
                        └─ job dies unread ─► counted ─► told

A token is made for a failure alone. It hears of the end of the job's tracker, which the caller has
made (see `lock_free`), on any thread, in the collector and in signal handlers: so what it does then
takes no lock and calls no foreign code. It appends to a deque; the pool's thread for callbacks does
the rest, or, once that has ended, whoever is there.

When it is told:

* a pool in a ``with`` block, or that is being shut down: at its end, all at once; by a warning,
  too, where somebody waits for the end and no exception is on its way, which a warning that is
  made an error would replace
* a pool that just goes on: when the count has doubled
* of jobs that outlive their pool: the first that dies unread, and all once no unread one is left
* at the interpreter's end: the rest, those that are still held included
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from .._common.forks import Turn, in_forks
from .._common.lock_free import members
from .._common.naming import one_line
from .._wire.failures import what_comes, what_was_raised
from .._wire.messages import Kind, Message
from ..errors import InitializerError, JobError, JobFailuresWarning
from ..logs import heard, listened_to, report_here
from ..status import JobStatus

_BATCH = 256  # deaths that are counted at one go where nothing is told soon

Source = Message | BaseException | None
"""What an outcome is made of."""

_Failure = tuple[int, str, Source]  # which one it is, the job's name, and what it is made of


class Token(weakref.ref[object]):
    """The one thing that knows whether a failure was looked at, while its ``holder`` lives."""

    __slots__ = ("_unseen",)
    _unseen: Unseen

    @classmethod
    def of(cls, unseen: Unseen, name: str, source: Source, holder: object) -> Token:
        """Make one."""
        token = cls(holder, cls._let_go)
        token._unseen = unseen
        _tokens.add(token)
        unseen.unread[token] = next(unseen.numbers), name, source
        return token

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def looked_at(self) -> None:
        """Somebody received what a failure alone gives."""
        unseen = self._unseen
        self._take()
        if unseen.ended:
            unseen.looked_at_late()

    def _take(self) -> _Failure | None:
        """Return the failure to whoever asks first."""
        failure = self._unseen.unread.pop(self, None)
        if failure is not None:  # else the interpreter may be at its end, and without globals
            _tokens.discard(self)
        return failure

    def _let_go(self) -> None:
        failure = self._take()
        if failure is not None:
            self._unseen.died(failure)


_tokens: set[Token] = set()
"""Those of failures that are unread: so they hear of a job's end where all of its pool goes too."""


class Countable(Protocol):
    """What has to be known of one that failed."""

    @property
    def name(self) -> str: ...

    @property
    def inner(self) -> bool: ...

    @property
    def tracker(self) -> object: ...


class _Outcome(Protocol):
    """How it ended."""

    @property
    def status(self) -> JobStatus: ...

    def watch(self, unseen: Unseen, name: str, holder: object) -> None: ...


class _News(NamedTuple):
    """What is to be told."""

    lost: int
    first: str
    record: bool
    warning: bool


class Unseen:
    """Counts one pool's unread failures, and tells of them.

    Args:
        call_back: Calls what it is given, once, where foreign code may run; it must not block.
        ended_jobs: How many jobs of the pool have ended, by kind; written by its dispatcher.

    Attributes:
        numbers: Those of the pool's failures.
        unread: Each failure that is unread, by its token. Whoever settles a job adds to it; whoever
            looks at that, or lets it go, takes out.
        ended: Whether the pool has ended.
    """

    def __init__(
        self, call_back: Callable[[Callable[[], object]], object], ended_jobs: Sequence[int]
    ) -> None:
        self.numbers = itertools.count()
        self.unread: dict[Token, _Failure] = {}
        self._call_back = call_back
        self._ended_jobs = ended_jobs
        # Appended by whoever lets go of a job; taken out by who has the turn. One that may be the
        # first, as far as is known by then, brings what it was, the others None.
        self._dead: deque[_Failure | None] = deque()
        self._earliest = sys.maxsize
        self._posted = False  # the dead are about to be counted
        self._room = 1  # so many dead are to be counted, before the end; then each at once
        self._awaited: list[None] = []  # one for each thread that waits for the end to tell of it
        self._quiet = False  # somebody tells at the end
        self.ended = False
        self._rest = False  # all is to be told, at the next turn
        # Whoever's mark is first here has the turn; they alone write what follows. Nobody waits
        # for it: a finalizer may want it in the middle of its own thread's turn.
        self._turn: list[object] = []
        self._count = self._recorded = self._warned = 0
        self._first = sys.maxsize, ""  # the first failure's number and text
        self._told_since = False  # the end
        _all.add(self)

    # --- what happens to failures, on any thread ---------------------------------------------

    def note(self, job: Countable, outcome: _Outcome) -> None:
        """Have a failure noticed that nobody will look at; to be called before anybody can."""
        if outcome.status is JobStatus.ERROR and not job.inner:
            outcome.watch(self, job.name, job.tracker)

    def died(self, failure: _Failure) -> None:
        """A token has died unread."""
        dead = self._dead
        if failure[0] < self._earliest:
            dead.append(failure)
            self._earliest = failure[0]  # last: who leaves out what a later one was relies on it
        else:
            dead.append(None)
        if (len(dead) >= self._room or self.ended) and not self._posted:
            self._post()

    def looked_at_late(self) -> None:
        """One was looked at: it may be the last that those wait for which died unread."""
        if not self.unread and self._count > self._recorded:
            self._rest = True
            self._post()

    def _post(self) -> None:
        self._posted = True
        self._call_back(self._collect)

    def _collect(self) -> None:
        # First: whoever appends later and finds it set would leave its failure lying.
        self._posted = False
        for news in self._turns():
            self._tell(news)

    # --- the pool's end ----------------------------------------------------------------------

    def keep_quiet(self) -> None:
        """Tell nothing before the end, which somebody sees to: a block, or a shutdown."""
        self._quiet = True
        self._room = _BATCH

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """While somebody waits for the pool's end, who will call `tell_rest`.

        To be entered before the pool can end. An interrupt of the waiting leaves the telling to the
        pool, or does it, if that has ended.
        """
        self._awaited.append(None)
        try:
            yield
        except BaseException:
            self._awaited.pop()
            if self.ended:
                self.tell_rest()
            raise
        self._awaited.pop()

    def pool_ended(self) -> None:
        """Called on the thread for callbacks, when everything else is gone."""
        self.ended = True
        if not self._awaited:
            self.tell_rest()

    def tell_rest(self, stacklevel: int | None = None) -> None:
        """Tell what is untold, now that no job is left that may fail.

        With a ``stacklevel`` by a `JobFailuresWarning`, too, as in `warnings.warn` called here: of
        all that was only logged, as where the pool has ended before somebody waits for that.
        """
        self.ended = True
        self._rest = True
        every = [*self._turns(warns=stacklevel is not None)]  # first: a warning may be an error
        for news in every:
            if news.record:
                self._tell(news, warned=news.warning)
            if news.warning and stacklevel is not None:
                _warn(self._text(news), stacklevel)

    def tell_at_exit(self) -> None:
        """Tell the rest at the interpreter's end: nobody will look at those that are held."""
        with contextlib.suppress(KeyError):  # none is left; others may take some out meanwhile
            while True:
                token, failure = self.unread.popitem()
                _tokens.discard(token)
                self._dead.append(failure)
        self.tell_rest()

    def mute(self) -> None:
        """Tell nothing any more: in a fork of the process, where the jobs are its parent's."""
        self.unread.clear()
        self._dead.clear()
        self._count = self._recorded = self._warned = 0

    # --- counting and telling ----------------------------------------------------------------

    def _turns(self, *, warns: bool = False) -> Iterator[_News]:
        """Count the dead, and give what is to be told, until there is nothing to be done.

        Or until somebody else does it: they look once more when they have given up their turn.
        """
        while self._dead or self._rest:
            me = object()
            self._turn.append(me)
            if self._turn[:1] != [me]:
                return
            try:
                news = self._count_dead(warns)
            finally:
                self._turn.clear()
            if news is not None:
                yield news

    def _count_dead(self, warns: bool) -> _News | None:
        """Return what is to be told, which is then taken to be told."""
        everything = self._rest
        if everything:
            self._rest = False  # before the counting: who sets it again has added something
        dead = self._dead
        first: _Failure | None = None
        while dead:
            failure = dead.popleft()
            self._count += 1
            if failure is not None and (first is None or failure[0] < first[0]):
                first = failure
        if first is not None and first[0] < self._first[0]:
            number, name, source = first
            self._first = number, f"{brief(str.__repr__(name))}: {failure_line(source, name)}"
        if self.ended:
            if not everything and not self._awaited:
                everything = not self._told_since or not self.unread
                self._told_since = True
        elif self._quiet:
            self._room = _BATCH
        else:
            due = max(1, 2 * self._recorded)
            everything = everything or self._count >= due
            self._room = max(1, min(_BATCH, due - self._count))
        return self._news(warns) if everything else None

    def _news(self, warns: bool) -> _News | None:
        record, warning = self._count > self._recorded, warns and self._count > self._warned
        self._recorded = self._count
        if warning:
            self._warned = self._count
        if record or warning:
            return _News(self._count, self._first[1], record, warning)
        return None

    def _text(self, news: _News) -> str:
        total = max(news.lost, sum(self._ended_jobs))
        if news.lost == 1:
            return f"1 of {total} jobs failed, and nobody looked at it: {news.first}"
        return (
            f"{news.lost} of {total} jobs failed, and nobody looked at them; "
            f"the first was {news.first}"
        )

    def _tell(self, news: _News, *, warned: bool = False) -> None:
        text = self._text(news)
        report_here(logging.WARNING, "%s", text)
        if warned or heard(logging.WARNING) or not listened_to(logging.WARNING):
            return
        if sys.stderr is None:
            return
        with contextlib.suppress(Exception):  # it is closed, or somebody's own
            print(f"primitive_jobs: {text}", file=sys.stderr, flush=True)


def _warn(text: str, stacklevel: int) -> None:
    """Give the warning, as `warnings.warn` called where this is, but not once for each line.

    By default that drops what it has shown for the same line before, which another pool has told.
    """
    frame = sys._getframe(1)
    for _ in range(stacklevel - 1):
        frame = frame.f_back or frame
    warnings.warn_explicit(
        JobFailuresWarning(text),
        JobFailuresWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        frame.f_globals.get("__name__") or "<unknown>",
    )


def failure_line(source: Source, name: str) -> str:
    """Type and message of a failed job's exception, on a line that can be printed.

    Nothing of the user's is unpickled for it.
    """
    try:
        if not isinstance(source, Message):
            return "(unknown)" if source is None else brief(_first_line(source))
        if source.kind == Kind.INIT_FAILED:
            return brief(f"{InitializerError.__name__}: {of_initializer(source, name)}")
        return brief(what_comes(source.body))
    except Exception:  # noqa: BLE001 - it may be nonsense, which a job may send
        return "(unknown)"


def _first_line(error: BaseException) -> str:
    """Type and message; of one of ours, which may have a stack below it, the first line."""
    stack = getattr(error, "stack", None) if isinstance(error, JobError) else None
    return one_line(error) if not stack else one_line(error).split(" Stack (most", 1)[0]


def of_initializer(message: Message, name: str) -> str:
    """What a job is told of an initializer that raised."""
    return f"job {name}: the pool's preload or initializer raised {what_was_raised(message.body)}"


_all: weakref.WeakSet[Unseen] = weakref.WeakSet()


def tell_all_at_exit() -> None:
    """Tell what is untold of any pool: one record for each."""
    for unseen in members(_all):
        unseen.tell_at_exit()


def _after_fork_in_child() -> None:
    for unseen in members(_all):
        unseen.mute()
    _all.clear()
    _tokens.clear()


in_forks(Turn.PARTS, _after_fork_in_child)


def brief(text: str, most: int = 200) -> str:
    """The text on one line of at most ``most`` characters, all of which can be printed."""
    line = " ".join(text[: 4 * most].split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= most else f"{line[: most - 3]}..."
