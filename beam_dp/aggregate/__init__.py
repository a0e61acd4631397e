"""User-level differentially private aggregates: bounding, metrics, selection, release; and the local model."""

from beam_dp.aggregate.bounds import Bounds as Bounds
from beam_dp.aggregate.budget import Budget as Budget
from beam_dp.aggregate.budget import PrivateSelection as PrivateSelection
from beam_dp.aggregate.combine import DPCombineGlobally as DPCombineGlobally
from beam_dp.aggregate.combine import DPCombinePerKey as DPCombinePerKey
from beam_dp.aggregate.combine import LaplaceCount as LaplaceCount
from beam_dp.aggregate.combine import LaplaceMean as LaplaceMean
from beam_dp.aggregate.combine import LaplaceSum as LaplaceSum
from beam_dp.aggregate.frequent import MostFrequent as MostFrequent
from beam_dp.aggregate.local import EstimateFrequencies as EstimateFrequencies
from beam_dp.aggregate.local import RandomizedResponse as RandomizedResponse
from beam_dp.aggregate.metrics import Count as Count
from beam_dp.aggregate.metrics import Histogram as Histogram
from beam_dp.aggregate.metrics import Mean as Mean
from beam_dp.aggregate.metrics import PrivacyUnitCount as PrivacyUnitCount
from beam_dp.aggregate.metrics import Quantiles as Quantiles
from beam_dp.aggregate.metrics import Sum as Sum
from beam_dp.aggregate.metrics import Variance as Variance
from beam_dp.aggregate.metrics import VectorSum as VectorSum
from beam_dp.aggregate.transform import Aggregate as Aggregate
from beam_dp.aggregate.transform import SelectPartitions as SelectPartitions
