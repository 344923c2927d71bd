"""What long work of a command shows on the standard error."""

import sys
import time


class Progress:
    """A line that is written over: how far, how fast, time left. Nothing where nobody looks on."""

    def __init__(self, what: str, unit: str, total: int):
        self._what, self._unit, self._total = what, unit, total
        self._began, self._told = time.perf_counter(), 0.0

    def __call__(self, done: int) -> None:
        """So many are done."""
        now = time.perf_counter()
        is_last = done == self._total
        if not sys.stderr.isatty() or (now - self._told < 0.2 and not is_last):
            return
        self._told, speed = now, done / (now - self._began)
        far = f"{done / self._total:.0%} of {self._total:,} {self._unit}"
        text = f"{self._what}: {far}, {speed:,.0f}/s, {(self._total - done) / speed:.0f} s left"
        print(f"\r\033[K{text}", end="\n" if is_last else "", file=sys.stderr, flush=True)
