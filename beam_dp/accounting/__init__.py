"""The ledger: what a pipeline's mechanisms promise together, recorded before anything runs.

`beam_dp.accounting.pipeline` holds the Beam side; nothing here imports Beam.
"""

from beam_dp.accounting.entries import Entry as Entry
from beam_dp.accounting.grants import Grant as Grant
from beam_dp.accounting.grants import Plan as Plan
from beam_dp.accounting.grants import require_grant as require_grant
from beam_dp.accounting.ledger import Ledger as Ledger
from beam_dp.accounting.loss import DiscreteGaussianLoss as DiscreteGaussianLoss
from beam_dp.accounting.loss import DiscreteLaplaceLoss as DiscreteLaplaceLoss
from beam_dp.accounting.loss import ParametersLoss as ParametersLoss
from beam_dp.accounting.loss import PrivacyLoss as PrivacyLoss
from beam_dp.accounting.shares import Part as Part
from beam_dp.accounting.shares import Share as Share
from beam_dp.accounting.shares import Shares as Shares
