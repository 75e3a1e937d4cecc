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
    as_read,
    begins,
    ends_of_texts,
    mean_counted,
    predicted_before,
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


def _read_by_hand(row, sequences):
    """What a causal network reads of one sequence of documents, and its segments."""
    read, segments, number = [], [], 0
    for place, token in enumerate(row):
        own = sequences.wrap and place == 1 and token == sequences.bos_id
        again = token == sequences.bos_id and row[max(place - 1, 0)] == sequences.eos_id and place
        number += not own and (token == sequences.eos_id or bool(again))
        read.append(sequences.bos_id if token == sequences.eos_id else token)
        segments.append(number)
    return read, segments


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), min_size=2, max_size=2),
    wrap=st.booleans(),
    one_token=st.booleans(),
)
def test_a_causal_network_reads_each_document_after_bos_on_its_own(rows, wrap, one_token):
    sequences = Sequences("documents", EOS if one_token else BOS, EOS, wrap)
    read, segments = as_read(jnp.array(rows), sequences)
    for i, row in enumerate(rows):
        assert (read[i].tolist(), segments[i].tolist()) == _read_by_hand(row, sequences)


def _ends_by_hand(row, free, bos):
    last = len(row)  # where what fills the end begins
    while last and row[last - 1] == EOS and not free[last - 1]:
        last -= 1
    return [
        token == EOS and bool({*row[:place]} - {bos, EOS}) and all(free[place:last])
        for place, token in enumerate(row)
    ]


@settings(deadline=None, max_examples=200)
@given(
    row=st.lists(st.integers(1, 3), min_size=5, max_size=5),
    free=st.lists(st.sampled_from([True, True, True, False]), min_size=5, max_size=5),
    bos=st.sampled_from([BOS, EOS]),
)
def test_an_eos_ends_a_text_that_has_begun_unless_what_follows_was_given(row, free, bos):
    ends = ends_of_texts(np.array([row]), np.array([free]), bos, EOS)
    assert ends[0].tolist() == _ends_by_hand(row, free, bos)


def test_the_first_token_of_a_segment_is_predicted_at_its_own_position():
    states, segments = jnp.arange(6.0).reshape(1, 6, 1), jnp.array([[0, 0, 1, 2, 2, PADDING]])
    assert predicted_before(states, segments)[0, :, 0].tolist() == [0, 0, 2, 3, 3, 5]
    assert predicted_before(states, None)[0, :, 0].tolist() == [0, 0, 1, 2, 3, 4]


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
