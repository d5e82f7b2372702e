"""The allocator's settings, in processes of their own."""

import subprocess
import sys

import pytest

MEASURE = """
import os, sys
os.environ["THP_MEM_ALLOC_ENABLE"] = "1"
from training.fit.allocator import keep_freed_memory, return_unused_pages
import torch

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

{setting}
torch.ones(64 * 2**20)
before = resident()
held = [torch.ones(2**20) for _ in range(64)]
between = held[1::2]
del held
{cleaning}
print(resident() - before)
"""


def growth(setting: str, cleaning: str) -> float:
    """MiB that stay with a process after half of 64 tensors of 4 MiB, every second one, were freed."""
    words = [sys.executable, "-c", MEASURE.format(setting=setting, cleaning=cleaning)]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_kept_and_unused_pages_between_tensors_are_returned() -> None:
    taken = growth("pass", "pass")
    assert taken == pytest.approx(128, abs=40)  # by default what is freed is returned: half of 256 MiB is left
    kept = growth("keep_freed_memory()", "pass")
    assert kept < 40  # the first tensor's 256 MiB were still there for all of them
    cleaned = growth("keep_freed_memory()", "return_unused_pages()")
    assert cleaned < kept - 60
