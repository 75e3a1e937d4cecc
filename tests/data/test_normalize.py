"""Normalised texts. Oracles: examples written out; the alphabet; a second time changes nothing."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtt_jax.data import DataConfig, TokenizerConfig, prepare
from sdtt_jax.data.normalize import (
    NORMALIZERS,
    require_characters,
    text8,
    without_traces_of_files,
)
from sdtt_jax.errors import ConfigError, DataError
