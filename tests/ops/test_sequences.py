"""The segment and the role of each position. Oracle: a loop over sequences and their tokens."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtt_jax.errors import ConfigError
from sdtt_jax.ops.sequences import (
    KINDS,
    PADDING,
    Sequences,
    arrange,
    begins,
    mean_counted,
    single_texts,
)

BOS, EOS = 1, 2


def _by_hand(row, sequences):
    """Segments and free positions of one sequence."""
    number, prompt, segments, free = 0, False, [], []
    if sequences.kind == "prompted":
        prompt = sequences.bos_id in row
    for place, token in enumerate(row):
        segments.append(number if sequences.kind == "documents" or not number else PADDING)
        free.append(segments[-1] != PADDING and not prompt)
        if prompt:
            prompt = token != sequences.bos_id
        elif token == sequences.eos_id and not (sequences.wrap and place == 0):
            number += 1
    return segments, free


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.lists(st.integers(0, 4), min_size=7, max_size=7), min_size=2, max_size=2),
    kind=st.sampled_from(KINDS[1:]),
    wrap=st.booleans(),
    one_token=st.booleans(),
)
def test_segments_and_free_positions_are_those_of_a_loop(rows, kind, wrap, one_token):
    sequences = Sequences(kind, EOS if one_token else BOS, EOS, wrap and kind == "documents")
    found = arrange(jnp.array(rows), sequences)
    for i, row in enumerate(rows):
        segments, free = _by_hand(row, sequences)
        assert found.segments[i].tolist() == segments
        assert found.free[i].tolist() == free


def test_a_stream_of_documents_whose_positions_are_alike_has_no_arrangement():
    assert arrange(jnp.zeros((1, 3), jnp.int32), None) is None
    assert arrange(jnp.zeros((1, 3), jnp.int32), Sequences()) is None


def test_texts_stand_alone_without_padding_and_with_their_prompts_counted():
    tokens = np.array([[3, BOS, 4, EOS, EOS], [5, 6, BOS, 7, EOS]])
    texts, prompts = single_texts(tokens, Sequences("prompted", BOS, EOS))
    assert [text.tolist() for text in texts] == [[3, BOS, 4, EOS], [5, 6, BOS, 7, EOS]]
    assert prompts.tolist() == [2, 3]
    texts, prompts = single_texts(np.array([[3, EOS, 4, 5]]), Sequences("documents", BOS, EOS))
    assert [text.tolist() for text in texts] == [[3, EOS], [4, 5]]
    assert prompts.tolist() == [0, 0]
    assert len(single_texts(tokens, None)[0]) == 2


def test_a_segment_begins_where_its_number_changes():
    segments = jnp.array([[0, 0, 1, 2, 2, PADDING]])
    assert begins(segments).tolist() == [[True, False, True, True, False, True]]


def test_means_are_over_what_counts():
    values, free = jnp.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]), jnp.array([[1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(mean_counted(values, free.astype(bool)), [1.5, 0.0])
    np.testing.assert_allclose(mean_counted(values, None), [1.0, 0.0])


def test_single_texts_are_not_wrapped():
    with pytest.raises(ConfigError, match="wrap=True"):
        dataclasses.replace(Sequences("padded"), wrap=True)


def test_a_text_without_a_batch_is_refused():
    with pytest.raises(ConfigError, match=r"tokens must be \[batch, length\], not \[3\]"):
        arrange(jnp.zeros(3, jnp.int32), Sequences("padded"))
