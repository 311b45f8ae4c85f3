"""Try all faults: ``python -m tests.faults [words of some] [--publish]``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from .fits import ready
from .harness import Outcome, try_it
from .table import ALL, publish


def main() -> int:
    """Try the faults asked for, print how each went, and return the exit status."""
    asked = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    asked.add_argument("words", nargs="*", help="try only faults whose description has all of these words")
    asked.add_argument("--quick", action="store_true", help="try the sample that the test suite tries")
    asked.add_argument("--publish", action="store_true", help="write the table of docs/reliability.md")
    options = asked.parse_args()
    chosen = [f for f in ALL if all(w in str(f) for w in options.words) and (f.quick or not options.quick)]
    outcomes: list[Outcome] = []
    ready(chosen)
    for one in chosen:
        outcomes.append(try_it(one))
        last = outcomes[-1]
        print(f"{last.word:8s}{last.seconds:6.1f} s  {one}" + (f"  ({last.why})" if last.why else ""), flush=True)
    counts = Counter(outcome.word for outcome in outcomes)
    print(f"{len(chosen)} faults: {counts['held']} held, {counts['failed']} failed, {counts['skipped']} skipped")
    if options.publish:
        publish(list(zip(chosen, outcomes)))
    return int(counts["failed"] > 0)


sys.exit(main())
