"""A sandbox that refuses system calls: a seccomp filter, for this process and all that it starts.

    python tests/sandbox.py memfd_create:ENOSYS pidfd_open:EPERM -- python -m pytest ...

Python has the functions all the same, and the kernel the calls: as in a container or under systemd.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Mapping

# The numbers of <asm/unistd.h>; one name may stand for several calls.
_X86_64: dict[str, tuple[int, ...]] = {
    "memfd_create": (319,),
    "eventfd": (284, 290),
    "pidfd_open": (434,),
    "pidfd_send_signal": (424,),
    "prctl": (157,),
    "epoll_create": (213, 291),
    "prlimit": (302,),
    "tgkill": (234,),
    "close_range": (436,),
}
_AARCH64: dict[str, tuple[int, ...]] = {
    "memfd_create": (279,),
    "eventfd": (19,),
    "pidfd_open": (434,),
    "pidfd_send_signal": (424,),
    "prctl": (167,),
    "epoll_create": (20,),
    "prlimit": (261,),
    "tgkill": (131,),
    "close_range": (436,),
}
_MACHINES: dict[str, tuple[int, dict[str, tuple[int, ...]]]] = {
    "x86_64": (0xC000003E, _X86_64),
    "aarch64": (0xC00000B7, _AARCH64),
}
CALLS = tuple(_X86_64)

_INSTRUCTION = struct.Struct("HBBI")  # struct sock_filter
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_NUMBER, _ARCHITECTURE = 0, 4  # where they stand in struct seccomp_data
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # SECCOMP_RET_*
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_PR_GET_CHILD_SUBREAPER = 37


def can_refuse() -> bool:
    """Whether this machine's calls are known here."""
    return sys.platform == "linux" and platform.machine() in _MACHINES


def can_adopt() -> bool:
    """Whether a process can be the reaper of orphans below it: prctl is there."""
    adopts = ctypes.c_int()
    return bool(ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(adopts)) == 0)


def refuse(calls: Mapping[str, int]) -> None:
    """Have the calls end in these errors from now on, in this thread and all that it starts.

    Raises:
        OSError: The system takes no filter.
    """
    architecture, numbers = _MACHINES[platform.machine()]
    ends = [(number, end) for name, end in calls.items() for number in numbers[name]]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for number, end in ends:
        program += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | end)]
    program.append((_RETURN, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*line) for line in program))

    class Program(ctypes.Structure):  # struct sock_fprog
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    given = Program(len(program), ctypes.addressof(code))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(given), 0, 0),
    ):
        if prctl(*arguments):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main(arguments: list[str]) -> None:
    """Run a command under a filter."""
    place = arguments.index("--")
    wishes = [wish.partition(":") for wish in arguments[:place]]
    refuse({name: getattr(errno, code) for name, _, code in wishes})
    command = arguments[place + 1 :]
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
