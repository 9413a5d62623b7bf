"""Calls of the C library that a worker makes when it starts, and that Python has no names for.

They go through `_ctypes` alone. The module `ctypes` imports `sysconfig`, and that `threading`
(CPython 3.13.18 and 3.14): every start of a worker would pay for both.
"""

from __future__ import annotations

import _ctypes
import _signal as signal  # type: ignore[import-not-found]

TYPE_CHECKING = False  # so that a worker imports no typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36  # linux/prctl.h

_c: Any = _ctypes  # of which type checkers know a part


class _Int(_c._SimpleCData):  # type: ignore[misc]
    _type_ = "i"


class _UnsignedLong(_c._SimpleCData):  # type: ignore[misc]
    _type_ = "L"


class _Pointer(_c._SimpleCData):  # type: ignore[misc]
    _type_ = "P"


class _Prctl(_c.CFuncPtr):  # type: ignore[misc]
    _flags_ = _c.FUNCFLAG_CDECL
    _restype_ = _Int
    _argtypes_ = (_Int, *[_UnsignedLong] * 4)


class _PrctlOfName(_c.CFuncPtr):  # type: ignore[misc]
    _flags_ = _c.FUNCFLAG_CDECL
    _restype_ = _Int


class _Signal(_c.CFuncPtr):  # type: ignore[misc]
    _flags_ = _c.FUNCFLAG_CDECL
    _restype_ = _Pointer
    _argtypes_ = (_Int, _Pointer)


class _Buffering(_c.CFuncPtr):  # type: ignore[misc]
    _flags_ = _c.FUNCFLAG_CDECL
    _restype_ = _Int
    _argtypes_ = (_Pointer, _Pointer, _Int, _UnsignedLong)


class _Flush(_c.CFuncPtr):  # type: ignore[misc]
    _flags_ = _c.FUNCFLAG_CDECL
    _restype_ = _Int
    _argtypes_ = (_Pointer,)


_LINES = 1  # _IOLBF of glibc and musl


def _address(name: str) -> int:
    return int(_c.dlsym(_c.dlopen(None, 0), name))


def settle_in(name: str) -> None:
    """Die with the thread that started this process, adopt orphans below it, and bear a name.

    Linux alone has these.
    """
    address = _address("prctl")
    prctl = _Prctl(address)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _PrctlOfName(address)(_PR_SET_NAME, name.encode())


def stdout_by_lines() -> Callable[[], object]:
    """Have C's stdout written at the end of each line; return what flushes it.

    That one alone: to flush all streams would wait for a thread that reads from one.
    """
    stdout = _Pointer.from_address(_address("stdout"))
    flush = _Flush(_address("fflush"))
    flush(stdout)
    _Buffering(_address("setvbuf"))(stdout, None, _LINES, 0)
    return lambda: flush(stdout)


def pause_at(number: int) -> None:
    """Set a handler in C for a signal which never returns."""
    _Signal(_address("signal"))(number, _address("pause"))
