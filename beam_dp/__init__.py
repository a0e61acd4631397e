"""Differential privacy on Apache Beam: private text at any scale, with a ledger of what it cost."""

from beam_dp.accounting.ledger import Ledger as Ledger
from beam_dp.embeddings import IndexRef as IndexRef
from beam_dp.embeddings import build_index as build_index
from beam_dp.embeddings import open_index as open_index
from beam_dp.embeddings import resolve_index as resolve_index
from beam_dp.errors import BeamDpError as BeamDpError
from beam_dp.guarantees import MetricGuarantee as MetricGuarantee
from beam_dp.io import ReadBatches as ReadBatches
from beam_dp.io import WriteBatches as WriteBatches
from beam_dp.mechanisms import MECHANISMS as MECHANISMS
from beam_dp.mechanisms import MultivariateLaplace as MultivariateLaplace
from beam_dp.mechanisms import TruncatedGumbel as TruncatedGumbel
from beam_dp.mechanisms import WordMechanism as WordMechanism
from beam_dp.text import PrivatizeText as PrivatizeText
