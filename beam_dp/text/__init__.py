"""Tokenising and the text transforms."""

from beam_dp.text.privatize import OOV_POLICIES as OOV_POLICIES
from beam_dp.text.privatize import TextOptions as TextOptions
from beam_dp.text.tokenizer import tokenize as tokenize
from beam_dp.text.transform import Privatized as Privatized
from beam_dp.text.transform import PrivatizeText as PrivatizeText
