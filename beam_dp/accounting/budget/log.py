"""What a backend of the budget store does: keep one list of lines for each data set, and append with compare-and-swap.

A backend knows nothing of budgets. It stores lines of text as they are; that a line is written as record number n
only where n records stand is all that the rules in `beam_dp.accounting.budget.history` need.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class RecordLog(Protocol):
    """An append-only list of JSON lines for each data set.

    Every method may be called from several threads and processes at once, and after a fork. Making one connects to
    nothing.

    Raises:
        NoStoreError: there is no store yet, in which case ``append`` of a record number 0 may make it.
        BudgetStoreError: the store is unreachable, read-only, locked for too long, or corrupt; one line, without
            credentials or the driver's own text.
    """

    def datasets(self) -> list[str]:
        """The names of the data sets that have records, sorted."""
        ...

    def read(self, dataset: str) -> list[str]:
        """The lines of a data set in order, of one moment; empty if there is no such data set."""
        ...

    def append(self, dataset: str, sequence: int, line: str) -> bool:
        """Writes ``line`` as record number ``sequence`` (from 0) and nothing else, atomically and durably.

        Returns:
            False, with nothing written, if there is a record of this number already or the one before is missing.
        """
        ...

    def now(self) -> datetime:
        """The time in UTC (aware), of the server's clock where there is one."""
        ...
