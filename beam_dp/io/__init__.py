"""RecordBatch sources and sinks for text, jsonl, csv, tsv and parquet."""

from beam_dp.io.batches import Position as Position
from beam_dp.io.batches import RecordBatchCoder as RecordBatchCoder
from beam_dp.io.batches import keep_position as keep_position
from beam_dp.io.batches import position_of as position_of
from beam_dp.io.batches import split_by_size as split_by_size
from beam_dp.io.batches import with_position as with_position
from beam_dp.io.formats import FORMATS as FORMATS
from beam_dp.io.read import ReadBatches as ReadBatches
from beam_dp.io.read import ReadResult as ReadResult
from beam_dp.io.rejects import REJECTS_SCHEMA as REJECTS_SCHEMA
from beam_dp.io.write import WriteBatches as WriteBatches
