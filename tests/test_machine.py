"""Freed memory is kept, as the number of page faults shows."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from grata.machine import keep_pages
if "keep" in sys.argv:
    assert keep_pages()
x = torch.ones(2**24)
for i in range(12):
    if i == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    y = (x + 1) * 2
    del y
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, float(x.sum()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_memory_is_not_faulted_in_again():
    faults, sums = [], []
    for arguments in ([], ["keep"]):
        command = [sys.executable, "-c", SCRIPT, *arguments]
        words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        faults.append(int(words[0]))
        sums.append(words[1])
    assert faults[1] < faults[0] / 4
    assert sums[0] == sums[1]
