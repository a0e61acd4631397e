"""The public artifact: word vectors in, a verified and memory-mapped index in every worker process out."""

from beam_dp.embeddings.broadcast import IndexRef as IndexRef
from beam_dp.embeddings.broadcast import open_index as open_index
from beam_dp.embeddings.broadcast import resolve_index as resolve_index
from beam_dp.embeddings.build import BuildReport as BuildReport
from beam_dp.embeddings.build import build_index as build_index
from beam_dp.embeddings.index import EmbeddingIndex as EmbeddingIndex
from beam_dp.embeddings.manifest import Manifest as Manifest
