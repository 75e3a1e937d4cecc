"""The judge's scores. Oracles: the network's own log-softmax, text by text; values by hand."""

import dataclasses
import functools
import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from sdtt_jax.data import TokenizerConfig, train_tokenizer
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation import judge as judging
from sdtt_jax.evaluation.continuations import layout_of
from sdtt_jax.evaluation.judge import (
    in_judge_tokens,
    make_rows,
    retokenise,
    same_tokens,
    score_texts,
)
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.suites import given as suite
from sdtt_jax.networks import CausalConfig, CausalNetwork
from sdtt_jax.networks.gpt2 import GPT2Config, GPT2Network
from tests.spaces import KINDS, spacing
from tests.worlds import as_causal, noisy_params

SEEN = 8
NETWORK = GPT2Network(
    GPT2Config(vocab_size=11, length=SEEN, num_layers=1, embed_dim=8, num_heads=2)
)
PARAMS = functools.partial(noisy_params, NETWORK, 0)
BOS = 10
GPT2 = GPT2Network(GPT2Config(vocab_size=50_257, length=8, num_layers=1, embed_dim=8, num_heads=2))
RNG = np.random.default_rng(0)
TEXTS = [RNG.integers(0, 11, n, dtype=np.int32) for n in (5, 8, 1, 3, 7)]


@functools.cache
def judge():
    return as_causal(NETWORK, PARAMS(), SimpleNamespace(bos_id=BOS, eos_id=0))


@jax.jit
def _log_probs(tokens):
    return jax.nn.log_softmax(NETWORK.logits(PARAMS(), NETWORK.hidden(PARAMS(), tokens)))


def _nll(context, text):
    """Nats of `text` after `context`, in one piece; a causal network does not see the zeros behind it."""
    row = np.zeros((1, SEEN), np.int32)
    seen = np.concatenate([context, text])[:-1]
    row[0, : len(seen)] = seen
    log_probs = np.asarray(_log_probs(row), np.float64)[0, len(context) - 1 :]
    return -log_probs[np.arange(len(text)), text].sum()


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_texts_of_different_lengths_are_scored_whole(batch_size):
    scores = score_texts(judge(), TEXTS, batch_size=batch_size)
    np.testing.assert_allclose(scores.nll, [_nll([BOS], text) for text in TEXTS], rtol=1e-5)
    np.testing.assert_array_equal(scores.scored, [len(text) for text in TEXTS])
    np.testing.assert_array_equal(scores.windows, 1)


def test_without_bos_the_first_token_is_given():
    scores = score_texts(judge(), TEXTS, first_token="given", batch_size=8)
    expected = [_nll(text[:1], text[1:]) if len(text) > 1 else 0.0 for text in TEXTS]
    np.testing.assert_allclose(scores.nll, expected, rtol=1e-5)
    np.testing.assert_array_equal(scores.scored, [len(text) - 1 for text in TEXTS])
    assert scores.per_token[2] == 0


def test_written_logits_are_those_of_the_scores(tmp_path):
    """Also of a judge trained on `documents`. Oracle: the scores."""
    model = judge_of_documents()
    settings = Settings(arrays=str(tmp_path / "arrays.npz"), batch_size=2)
    suite._write_arrays(model, {0: np.int32([4, 0, 5, 6, 7, 0, 8])}, settings)
    with np.load(tmp_path / "arrays.npz") as file:
        log_probs, nll = log_softmax(file["logits"], axis=-1), file["nll"]
    targets = np.int32([4, 0, 5, 6, 7, 0, 8])
    np.testing.assert_allclose(nll[0, :7], -log_probs[0, range(7), targets], rtol=1e-5)


def test_a_judge_of_documents_reads_each_text_of_a_sequence_on_its_own():
    """It never read an EOS in training. Oracle: the scores of the parts, each after BOS."""
    model = judge_of_documents()
    parts = [np.int32(part) for part in ([4, 0], [5, 6, 7, 0], [8, 3])]
    scores = score_texts(model, [np.concatenate(parts), parts[1]], batch_size=2)
    alone = score_texts(model, parts, batch_size=3)
    np.testing.assert_allclose(scores.nll, [alone.nll.sum(), alone.nll[1]], rtol=1e-5)


@functools.cache
def judge_of_documents():
    network = CausalNetwork(
        CausalConfig(vocab_size=11, length=SEEN, num_layers=1, embed_dim=8, num_heads=2)
    )
    model = as_causal(network, noisy_params(network, 0), SimpleNamespace(bos_id=BOS, eos_id=0))
    return dataclasses.replace(model, facts=model.facts | {"sequences": "documents"})


@pytest.mark.parametrize("bos", [None, BOS])
def test_a_prompt_is_read_and_not_scored(bos):
    texts = [TEXTS[0], TEXTS[1][:7]]
    first = "given" if bos is None else "scored"
    scores = score_texts(judge(), texts, first_token=first, batch_size=8, given=3)
    start = [] if bos is None else [bos]
    expected = [_nll(np.concatenate([start, t[:3]]).astype(int), t[3:]) for t in texts]
    np.testing.assert_allclose(scores.nll, expected, rtol=1e-5)
    np.testing.assert_array_equal(scores.scored, [2, 4])


def test_a_text_longer_than_the_judge_sees_is_cut_into_windows():
    text = RNG.integers(0, 11, 2 * SEEN + 3, dtype=np.int32)
    scores = score_texts(judge(), [text, TEXTS[0]], batch_size=3)
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


def test_a_rotary_judge_reads_no_more_at_once_than_training_had(monkeypatch, tokenizers):
    """It has no last position, but none of those behind its training length means anything to it."""
    seen = []
    monkeypatch.setattr(
        judging, "token_nll", lambda _, rows, __: seen.append(rows) or np.zeros(rows.targets.shape)
    )
    network = CausalNetwork(
        CausalConfig(vocab_size=11, length=SEEN, num_layers=1, embed_dim=8, num_heads=2)
    )
    rotary = as_causal(network, {}, SimpleNamespace(bos_id=BOS))
    text = np.arange(2 * SEEN + 3, dtype=np.int32) % 11
    scores = score_texts(rotary, [text, TEXTS[0]], batch_size=3)
    np.testing.assert_array_equal(scores.windows, [3, 1])
    np.testing.assert_array_equal(scores.scored, [len(text), 5])
    assert seen[0].inputs.shape == (4, SEEN)
    rotary = dataclasses.replace(rotary, tokenizer=tokenizers[0])
    assert layout_of(rotary).max_length == SEEN + 1  # the last token is not read


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


def test_texts_are_cut_at_their_end_if_that_is_asked_for(tokenizers):
    """An EOS within a prompt ends nothing; prompt and continuation are converted separately."""
    characters, gpt2 = tokenizers
    ids = characters.encode("the lazy dog")
    texts = [np.insert(ids, 8, characters.eos_id), np.insert(ids, 2, characters.eos_id), ids]
    kept = in_judge_tokens(None, texts, characters, "keep", given=3)
    cut = in_judge_tokens(None, texts, characters, "cut", given=3)
    assert [len(text) for text in kept.texts] == [13, 13, 12]
    assert [len(text) for text in cut.texts] == [9, 13, 12]
    assert kept.facts["texts_that_end_early"] == cut.facts["texts_that_end_early"] == 1
    judge = as_causal(GPT2, None, gpt2)
    seen = in_judge_tokens(judge, [ids], characters, "keep", given=4)
    expected = [gpt2.encode("the "), gpt2.encode("lazy dog")]
    np.testing.assert_array_equal(seen.seen[0], np.concatenate(expected))
    assert seen.starts.tolist() == [len(expected[0])]
    assert seen.facts["retokenised"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["the th", "the thin", "the thin "])
def test_a_continuation_keeps_and_gets_no_space(tokenizers, kind, prompt):
    """Also if its tokenizer, or the judge's, puts one before each text. Oracle: the whole text."""
    _, gpt2 = tokenizers
    text = "the thin thing in the tin"
    spaced, other = spacing(kind), spacing("prepend", denoiser=True)
    for source, target in ((spaced, gpt2), (gpt2, spaced), (other, spaced)):
        judge = as_causal(GPT2, None, target)
        start = source.encode(prompt)
        ids = np.concatenate([start, source.encode(text[len(prompt) :], behind=True)])
        ended = np.append(ids, source.eos_id)
        for row in (ids, ended):
            [seen] = in_judge_tokens(judge, [row], source, "keep", given=len(start)).seen
            assert target.decode(seen) == text
        # Behind a token that ends a prompt, as of instructions, a text begins.
        parted = np.insert(ids, len(start), source.bos_id)
        found = in_judge_tokens(judge, [parted], source, "keep", given=len(start) + 1)
        expected = target.encode(source.decode(ids[len(start) :]))
        np.testing.assert_array_equal(found.seen[0][found.starts[0] :], expected)
        # The judge's EOS divides the two, wherever the model's own stands, and no one else does.
        for given in (len(start) + 1, len(start)):
            found = in_judge_tokens(judge, [parted], source, "keep", given=given)
            whole = retokenise(parted, source, target)
            np.testing.assert_array_equal(found.seen[0], whole)
            assert (found.seen[0][: found.starts[0]] == target.eos_id).sum() == given - len(start)


@pytest.mark.parametrize("token", [11, -1])
def test_tokens_that_the_judge_does_not_have_are_named(token):
    with pytest.raises(ConfigError, match=f"token {token}"):
        score_texts(judge(), [np.array([1, token, 2])], batch_size=1)
