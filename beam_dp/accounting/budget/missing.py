"""The one failure of a budget store that a caller can answer: there is none yet."""

from __future__ import annotations

from beam_dp.errors import BudgetStoreError


class NoStoreError(BudgetStoreError):
    """There is no budget store at the URL yet. `RecordLog.append` of a record number 0 makes it; nothing else does."""
