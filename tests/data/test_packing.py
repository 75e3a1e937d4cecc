"""Oracle: the definition, on the whole stream as a Python list."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtt_jax.data.packing import pack
from sdtt_jax.ops.sequence_kinds import Sequences

BOS, EOS = 1, 2


def _pack_by_definition(documents, length, wrap):
    stream = [token for document in documents for token in [*document, EOS]]
    size = length - 2 if wrap else length
    chunks = [stream[i : i + size] for i in range(0, len(stream) - size + 1, size)]
    return [[BOS, *chunk, EOS] if wrap else chunk for chunk in chunks]


def _pack(documents, length, wrap):
    arrays = [np.array(document, np.int32) for document in documents]
    return list(pack(arrays, length, Sequences(bos_id=BOS, eos_id=EOS, wrap=wrap)))


@settings(deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(3, 9), max_size=20), max_size=8),
    length=st.integers(3, 12),
    wrap=st.booleans(),
)
def test_sequences_are_the_chunks_of_the_stream_of_documents(documents, length, wrap):
    sequences = _pack(documents, length, wrap)
    assert [list(row) for row in sequences] == _pack_by_definition(documents, length, wrap)
    assert all(row.dtype == np.int32 and row.shape == (length,) for row in sequences)


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        (False, [[3, 4, 5, EOS], [6, 7, EOS, 8]]),
        (True, [[BOS, 3, 4, EOS], [BOS, 5, EOS, EOS], [BOS, 6, 7, EOS], [BOS, EOS, 8, EOS]]),
    ],
)
def test_an_example(wrap, expected):
    sequences = _pack([[3, 4, 5], [6, 7], [8]], 4, wrap)
    assert [row.tolist() for row in sequences] == expected
