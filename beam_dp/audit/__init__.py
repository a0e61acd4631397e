"""Evidence for word mechanisms: exact certificates, plausible deniability, and the epsilon that gives as much of it."""

from beam_dp.audit.calibration import Calibration as Calibration
from beam_dp.audit.calibration import calibrate as calibrate
from beam_dp.audit.certificates import Certificate as Certificate
from beam_dp.audit.certificates import certify as certify
from beam_dp.audit.deniability import Deniability as Deniability
from beam_dp.audit.deniability import plausible_deniability as plausible_deniability
