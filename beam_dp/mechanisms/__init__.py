"""Word mechanisms: pure numpy, one family a file."""

from collections.abc import Mapping
from types import MappingProxyType

from beam_dp.mechanisms.base import BoundMechanism as BoundMechanism
from beam_dp.mechanisms.base import WordMechanism as WordMechanism
from beam_dp.mechanisms.base import WordSpace as WordSpace
from beam_dp.mechanisms.multivariate_laplace import MultivariateLaplace as MultivariateLaplace
from beam_dp.mechanisms.truncated_gumbel import TruncatedGumbel as TruncatedGumbel

MECHANISMS: Mapping[str, type[WordMechanism]] = MappingProxyType(
    {mechanism.name: mechanism for mechanism in (MultivariateLaplace, TruncatedGumbel)}
)
"""Every word mechanism by the name that ledgers and command lines use."""
