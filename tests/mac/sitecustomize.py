"""Takes from Python what only Linux has, in every process that finds this folder in PYTHONPATH.

`python sitecustomize.py SCRIPT ARGUMENT ...` runs a script so, and the processes that it starts. As on a Mac: no
`os.sched_getaffinity`, no /proc, no glibc, a limit of the address space that the kernel refuses; with BARE=1 in the
environment, neither that limit nor timers.
"""

import ctypes
import os
import resource
import runpy
import signal
import sys


class _Library(ctypes.CDLL):
    def __getattr__(self, name):
        if name in ("gnu_get_libc_version", "mallopt", "malloc_trim"):
            raise AttributeError(name)
        return super().__getattr__(name)


def refuse(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith("/proc/"):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])


def setrlimit(kind, limits, original=resource.setrlimit):
    if kind == 9:  # RLIMIT_AS
        raise ValueError("current limit exceeds maximum limit")
    original(kind, limits)


if hasattr(os, "sched_getaffinity"):  # not yet done in this process
    del os.sched_getaffinity
    ctypes.CDLL = _Library
    sys.addaudithook(refuse)
    resource.setrlimit = setrlimit
    if os.environ.get("BARE"):
        del resource.RLIMIT_AS, signal.setitimer, signal.ITIMER_PROF, signal.ITIMER_REAL

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
