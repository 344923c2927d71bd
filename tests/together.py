"""Processes of a run as threads of one, for what they agree on the host."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from jaxllm.common.processes import Processes


class _Table:
    """What the members of one run share."""

    def __init__(self, count):
        self.count, self.called = count, False
        self.changed, self.values = threading.Condition(), {}


class Together(Processes):
    """One of several processes that are threads."""

    def __init__(self, index, table):
        super().__init__(index, table.count)
        self._table, self._turns = table, Counter()

    @property
    def called(self):
        return self._table.called

    def call(self):
        self._table.called = True

    def name(self, index):
        return f"process {index} (host{index})"

    def exchange(self, label, value):
        self._turns[label] += 1
        with self._table.changed:
            values = self._table.values.setdefault((label, self._turns[label]), {})
            values[self.index] = value
            self._table.changed.notify_all()
            assert self._table.changed.wait_for(lambda: len(values) == self.count, timeout=30), f"{label}: {values}"
        return [values[i] for i in range(self.count)]


def together(count, act):
    """What `act(processes)` returns in each of `count` threads, or the exception that it raises."""
    table = _Table(count)

    def attempt(index):
        try:
            return act(Together(index, table))
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(attempt, range(count)))
