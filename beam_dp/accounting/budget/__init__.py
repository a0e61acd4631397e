"""The persistent budget of a data set: limits, launches that are charged before they run, and their history.

A `BudgetStore` keeps the budgets behind one URL, a `BudgetRun` is one launch that a `Ledger` takes it through. The
pure rules are in `history`; no module here imports Beam.
"""

from beam_dp.accounting.budget.account import Account as Account
from beam_dp.accounting.budget.account import Run as Run
from beam_dp.accounting.budget.charges import Amount as Amount
from beam_dp.accounting.budget.charges import Charge as Charge
from beam_dp.accounting.budget.charges import Limit as Limit
from beam_dp.accounting.budget.charges import charges_of as charges_of
from beam_dp.accounting.budget.records import Record as Record
from beam_dp.accounting.budget.run import BudgetRun as BudgetRun
from beam_dp.accounting.budget.run import Quote as Quote
from beam_dp.accounting.budget.store import BudgetStore as BudgetStore
