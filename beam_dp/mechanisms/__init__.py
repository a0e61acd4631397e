"""Word mechanisms: pure numpy, one family a file."""

from collections.abc import Mapping
from types import MappingProxyType

from beam_dp.mechanisms.base import BoundMechanism as BoundMechanism
from beam_dp.mechanisms.base import FiniteLaw as FiniteLaw
from beam_dp.mechanisms.base import WordMechanism as WordMechanism
from beam_dp.mechanisms.base import WordSpace as WordSpace
from beam_dp.mechanisms.density_laplace import DensityLaplace as DensityLaplace
from beam_dp.mechanisms.density_prior import DensityPrior as DensityPrior
from beam_dp.mechanisms.distance_truncated_laplace import DistanceTruncatedLaplace as DistanceTruncatedLaplace
from beam_dp.mechanisms.hyperbolic_laplace import HyperbolicLaplace as HyperbolicLaplace
from beam_dp.mechanisms.knn_truncated import KnnTruncated as KnnTruncated
from beam_dp.mechanisms.mahalanobis import Mahalanobis as Mahalanobis
from beam_dp.mechanisms.multivariate_laplace import MultivariateLaplace as MultivariateLaplace
from beam_dp.mechanisms.rank_corrected_laplace import RankCorrectedLaplace as RankCorrectedLaplace
from beam_dp.mechanisms.truncated_gumbel import TruncatedGumbel as TruncatedGumbel
from beam_dp.mechanisms.vickrey import Vickrey as Vickrey
from beam_dp.mechanisms.word_exponential import Exponential as Exponential
from beam_dp.mechanisms.word_exponential import TruncatedExponential as TruncatedExponential
from beam_dp.mechanisms.word_randomized_response import WordRandomizedResponse as WordRandomizedResponse

MECHANISMS: Mapping[str, type[WordMechanism]] = MappingProxyType(
    {
        mechanism.name: mechanism
        for mechanism in (
            MultivariateLaplace,
            Mahalanobis,
            Vickrey,
            RankCorrectedLaplace,
            DistanceTruncatedLaplace,
            DensityLaplace,
            HyperbolicLaplace,
            Exponential,
            TruncatedExponential,
            DensityPrior,
            KnnTruncated,
            TruncatedGumbel,
            WordRandomizedResponse,
        )
    }
)
"""Every word mechanism by the name that ledgers and command lines use."""
