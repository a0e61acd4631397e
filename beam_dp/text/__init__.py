"""Tokenising and the text transforms."""

from beam_dp.text.ngram_rows import NGRAM_COLUMN as NGRAM_COLUMN
from beam_dp.text.ngram_rows import SplitIntoNgrams as SplitIntoNgrams
from beam_dp.text.ngrams import ngrams_of as ngrams_of
from beam_dp.text.privatize import OOV_POLICIES as OOV_POLICIES
from beam_dp.text.privatize import TextOptions as TextOptions
from beam_dp.text.tokenizer import tokenize as tokenize
from beam_dp.text.transform import Privatized as Privatized
from beam_dp.text.transform import PrivatizeText as PrivatizeText
