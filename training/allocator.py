"""The C allocator, set up for steps that take and give back the same few hundred megabytes again and again.

By default glibc returns a large tensor's memory to the system as soon as it is freed, so every step pays for the
kernel's zeroing of the same pages: a third of a step on a CPU.
"""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_NEVER = 2**31 - 1

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""PyTorch reads it at its first allocation: large tensors lie in huge pages."""


def keep_freed_memory() -> None:
    """Keep this process's freed memory for its next allocation, and let large tensors lie in huge pages.

    What the process needs at its peak stays with it to its end. Does nothing where the C library is not glibc, and no
    huge pages where PyTorch has allocated before.
    """
    os.environ.setdefault(HUGE_PAGES, "1")
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, _NEVER)
