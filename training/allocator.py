"""The C allocator, set up for steps that take and give back the same few hundred megabytes again and again.

By default glibc returns a large tensor's memory to the system as soon as it is freed, and the kernel zeroes the same
pages anew at every step. Below a moving threshold it keeps it, but in pieces that the next tensor of the same size does
not fit into, so that a worker grows from step to step.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_NEVER = -1

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""Environment variable that PyTorch reads when it is loaded; with 1, large tensors are laid in huge pages, which also
keeps the pieces of freed ones fit for the next."""


def keep_freed_memory() -> None:
    """Keep this process's freed memory for its next allocation; what it needs at its peak stays with it to its end.

    Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
