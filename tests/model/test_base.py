"""Models that are made in Python, not loaded. Oracle: what a loaded one says and does."""

import dataclasses

import jax
import numpy as np
import pytest

from sdtt_jax.errors import ConfigError


def in_memory(model, **facts):
    return dataclasses.replace(model, facts=facts, tokenizer=None)


def test_it_needs_no_facts(model):
    made, key = in_memory(model), jax.random.key(0)
    tokens = model.sample(key, 2, 2)
    np.testing.assert_array_equal(made.sample(key, 2, 2), tokens)
    np.testing.assert_array_equal(made.score(tokens, key), model.score(tokens, key))
    assert repr(made) == repr(model).replace(model.facts["path"], "(in memory)")
    assert made.folder is made.run_folder is None
    assert made.fingerprint == model.fingerprint
    with pytest.raises(ConfigError, match=r"\(in memory\) has 12"):
        made.log_probs(np.zeros((1, 13), np.int32))


def test_texts_end_where_no_tokenizer_but_a_config_says_what_eos_is(model):
    key, tokenizer = jax.random.key(0), model.tokenizer
    expected = model.sample(key, 4, 2, stop_at_eos=True)
    known = in_memory(model, ends=(tokenizer.bos_id, tokenizer.eos_id))
    np.testing.assert_array_equal(known.sample(key, 4, 2, stop_at_eos=True), expected)
    with pytest.raises(ConfigError, match="stop_at_eos"):
        in_memory(model).sample(key, 4, 2, stop_at_eos=True)
