"""Work for processes, some of which die of it; imports nothing, so that they start fast."""

import os
import signal
from pathlib import Path


def square(numbers):
    return [number**2 for number in numbers]


def deadly(numbers, folder, runs=99):
    """Die at 7, ``runs`` times at most; every run leaves a file."""
    before = len(list(Path(folder).iterdir()))
    if 7 in numbers:
        (Path(folder) / f"{before}-{len(numbers)}").touch()
        if before < runs:
            os.kill(os.getpid(), signal.SIGKILL)
    return square(numbers)
