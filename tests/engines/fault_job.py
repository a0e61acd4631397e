"""privatize_text for a Flink cluster on this machine, whose workers the command line takes for those of other machines.

    python -c "import fault_job; fault_job.main()" --flag=value ...

Takes the flags of privatize_text, a budget among them, and lets workers have the files of this machine.
"""

from __future__ import annotations

import sys

from beam_dp import Ledger
from beam_dp.accounting.budget import BudgetStore
from pipelines import privatize_text
from pipelines.options import RunOptions, parse_options


def main() -> None:
    """Submits the job and waits for it; the process ends with an exception where the job fails."""
    options = parse_options(sys.argv[1:], privatize_text.PrivatizeTextOptions)
    run = options.view_as(RunOptions)
    ledger = Ledger(budget=BudgetStore(str(run.budget_store)).run(str(run.dataset), str(run.run_id)))
    pipeline = ledger.pipeline(options)
    privatize_text.build(pipeline, ledger, options)
    pipeline.run().wait_until_finish()
