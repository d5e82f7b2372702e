"""The C allocator, set up for steps that allocate and free the same few hundred megabytes again and again.

By default glibc returns a large tensor's memory to the system as soon as it is freed, and the kernel zeroes the same
pages anew at every step. What it keeps, it keeps in pieces that the next tensor of the same size often does not fit
into, so that a worker grows from step to step. And it keeps it apart for different threads: those that read an epoch
end with it, and those of the next take over the memory of others, until all of it has grown to the largest need.
"""

import ctypes
import sys

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""Environment variable that PyTorch reads when it is loaded; with 1, large tensors lie in huge pages."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h
_NEVER = -1
_libc = ctypes.CDLL(None)


def keep_freed_memory() -> None:
    """Keep this process's freed memory for its next allocation. Does nothing where the C library is not glibc."""
    if _is_glibc():
        _libc.mallopt(_M_MMAP_MAX, 0)
        _libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
        _libc.mallopt(_M_ARENA_MAX, 1)


def return_unused_pages() -> None:
    """Return unused pages between tensors to the system, in milliseconds, so that a worker stops growing."""
    if _is_glibc():
        _libc.malloc_trim(0)


def _is_glibc() -> bool:
    return sys.platform == "linux" and hasattr(_libc, "mallopt")
