"""The judge's scores. Oracles: the network's own log-softmax one text after the other; values by hand."""

import itertools

import jax
import numpy as np
import pytest

from sdtt_jax.data import TokenizerConfig, train_tokenizer
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.judging import (
    check_vocabulary,
    first_document,
    make_rows,
    retokenise,
    same_tokens,
    score_texts,
)
from sdtt_jax.networks.gpt2 import GPT2Config, GPT2Network
from tests.worlds import noisy_params

SEEN = 8
NETWORK = GPT2Network(
    GPT2Config(vocab_size=11, length=SEEN, num_layers=1, embed_dim=8, num_heads=2)
)
PARAMS = noisy_params(NETWORK, 0)
BOS = 10
RNG = np.random.default_rng(0)
TEXTS = [RNG.integers(0, 11, n, dtype=np.int32) for n in (5, 8, 1, 3, 7)]


@jax.jit
def _log_probs(tokens):
    return jax.nn.log_softmax(NETWORK.logits(PARAMS, NETWORK.hidden(PARAMS, tokens)))


def _nll(context, text):
    """Nats of `text` after `context`, in one piece and without padding."""
    whole = np.concatenate([context, text])[None]
    log_probs = np.asarray(_log_probs(whole[:, :-1]), np.float64)[0, len(context) - 1 :]
    return -log_probs[np.arange(len(text)), text].sum()


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_texts_of_different_lengths_are_scored_whole(batch_size):
    scores = score_texts(NETWORK, PARAMS, TEXTS, bos_id=BOS, batch_size=batch_size)
    np.testing.assert_allclose(scores.nll, [_nll([BOS], text) for text in TEXTS], rtol=1e-5)
    np.testing.assert_array_equal(scores.scored, [len(text) for text in TEXTS])
    np.testing.assert_array_equal(scores.windows, 1)


def test_without_bos_the_first_token_is_given():
    scores = score_texts(NETWORK, PARAMS, TEXTS, bos_id=None, batch_size=8)
    expected = [_nll(text[:1], text[1:]) if len(text) > 1 else 0.0 for text in TEXTS]
    np.testing.assert_allclose(scores.nll, expected, rtol=1e-5)
    np.testing.assert_array_equal(scores.scored, [len(text) - 1 for text in TEXTS])
    assert scores.per_token[2] == 0


@pytest.mark.parametrize("bos", [None, BOS])
def test_a_prompt_is_read_and_not_scored(bos):
    texts = [TEXTS[0], TEXTS[1][:7]]
    scores = score_texts(NETWORK, PARAMS, texts, bos_id=bos, batch_size=8, given=3)
    start = [] if bos is None else [bos]
    expected = [_nll(np.concatenate([start, t[:3]]).astype(int), t[3:]) for t in texts]
    np.testing.assert_allclose(scores.nll, expected, rtol=1e-5)
    np.testing.assert_array_equal(scores.scored, [2, 4])


def test_a_text_longer_than_the_judge_sees_is_cut_into_windows():
    text = RNG.integers(0, 11, 2 * SEEN + 3, dtype=np.int32)
    scores = score_texts(NETWORK, PARAMS, [text, TEXTS[0]], bos_id=BOS, batch_size=3)
    stream = np.concatenate([[BOS], text])
    # Every window begins with the last token of the one before.
    parts = [stream[i : i + SEEN + 1] for i in range(0, len(text), SEEN)]
    expected = sum(_nll(part[:1], part[1:]) for part in parts)
    assert scores.nll[0] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(scores.windows, [3, 1])
    np.testing.assert_array_equal(scores.scored, [len(text), 5])


def test_every_token_is_scored_once_whatever_the_windows():
    for limit, given, bos in itertools.product((None, 3, 8), (0, 2, 4), (None, BOS)):
        rows, owners = make_rows(TEXTS, bos_id=bos, given=given, limit=limit)
        first = max(given, 1) if bos is None else given
        for index, text in enumerate(TEXTS):
            mine = owners == index
            np.testing.assert_array_equal(rows.targets[mine][rows.scored[mine]], text[first:])


@pytest.fixture(scope="module")
def tokenizers():
    text = ["the quick brown fox jumps over the lazy dog " * 20]
    characters = TokenizerConfig(model_type="char", vocab_size=64)
    return train_tokenizer(characters, text, "text8"), train_tokenizer(
        TokenizerConfig(kind="gpt2"), []
    )


def test_another_tokenizer_reads_the_same_text(tokenizers):
    characters, gpt2 = tokenizers
    ids = characters.encode("the lazy dog")
    np.testing.assert_array_equal(retokenise(ids, characters, gpt2), gpt2.encode("the lazy dog"))
    parted = np.concatenate([[characters.bos_id], ids, [characters.eos_id], ids])
    expected = [*gpt2.encode("the lazy dog"), gpt2.eos_id, *gpt2.encode("the lazy dog")]
    np.testing.assert_array_equal(retokenise(parted, characters, gpt2), expected)
    nothing = np.array([characters.bos_id, characters.eos_id], np.int32)
    assert retokenise(nothing, characters, gpt2).shape == (0,)
    assert same_tokens(gpt2, gpt2)
    assert not same_tokens(gpt2, characters)


def test_a_document_ends_at_the_first_eos_after_text():
    """GPT-2: BOS and EOS are one token, here 9; a text may begin with it."""
    for text, expected in (
        ([9, 1, 2, 9, 3], [9, 1, 2, 9]),
        ([1, 9, 9, 9], [1, 9]),
        ([9, 9, 1], [9, 9, 1]),
        ([], []),
    ):
        found = first_document(np.array(text, np.int32), 9, 9)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("token", [11, -1])
def test_tokens_that_the_judge_does_not_have_are_named(token):
    with pytest.raises(ConfigError, match=f"token {token}"):
        check_vocabulary(NETWORK, [np.array([1, token, 2])])
