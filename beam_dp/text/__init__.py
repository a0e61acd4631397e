"""Tokenising and the text transforms."""

from beam_dp.text.privatize import TextOptions as TextOptions
from beam_dp.text.tokenizer import tokenize as tokenize
from beam_dp.text.transform import Privatized as Privatized
from beam_dp.text.transform import PrivatizeText as PrivatizeText
