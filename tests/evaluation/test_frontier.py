"""Perplexity at the entropy of real text. Oracles: NumPy's interpolation, and texts whose figures are set."""

import dataclasses
import types

import numpy as np
import pytest

from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.judge import ReadTexts, Scores
from sdtt_jax.evaluation.record import Record
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.suites import frontier
from sdtt_jax.evaluation.suites.frontier import _matched, at_entropy, check, real_entropy, suite
from sdtt_jax.evaluation.suites.generation import Judged
from sdtt_jax.progress import shortened
from tests.model.runs import model, run

__all__ = ["model", "run"]

ENTROPIES, NATS = np.array([2.6, 2.4, 2.8]), np.array([2.0, 1.5, 4.0])


def test_between_temperatures_nats_are_linear_in_entropy_and_beyond_them_as_at_the_end():
    order = np.argsort(ENTROPIES)
    for target in (2.4, 2.45, 2.6, 2.75):
        expected = np.interp(target, ENTROPIES[order], NATS[order])
        assert at_entropy(NATS, ENTROPIES, target) == pytest.approx(expected)
    assert at_entropy(NATS, ENTROPIES, 3.0) == pytest.approx(6.0)
    rows = at_entropy(np.stack([NATS, 2 * NATS]), np.stack([ENTROPIES, ENTROPIES]), 2.5)
    np.testing.assert_allclose(rows, [1.75, 3.5])


def judged(distinct, nats, nfe=2.0):
    """Texts of eight tokens, `distinct` of them different and equally frequent: entropy log(distinct)."""
    tokens = np.tile(np.arange(8) % distinct, (5, 1))
    scores = Scores(np.full(5, 8 * nats), np.full(5, 8), np.ones(5, int))
    reading = ReadTexts(list(tokens), list(tokens), np.zeros(5), {}, np.zeros(5, int))
    return Judged(tokens, np.full(5, nfe), reading, scores)


def test_a_setting_stands_where_its_temperatures_have_the_entropy_of_real_text():
    """Half-way between the entropies of two and of four tokens."""
    settings = Settings(temperatures=(0.5, 1.0))
    texts = [judged(2, 1.0), judged(4, 3.0)]
    found = _matched(texts, settings, 1.5 * np.log(2))
    assert found["gen_ppl"] == pytest.approx(np.exp(2.0))
    assert found["gen_ppl_low"] == pytest.approx(found["gen_ppl_high"])  # all texts are alike
    assert found["temperature"] == pytest.approx(0.75)
    assert found["nfe"] == 2.0


def test_the_calls_are_those_at_that_entropy():
    """A temperature that does not enclose it changes nothing, though texts at it end sooner."""
    texts = [judged(2, 1.0, nfe=8), judged(4, 3.0, nfe=6), judged(8, 4.0, nfe=1)]
    for used in (2, 3):
        settings = Settings(temperatures=(0.5, 1.0, 3.0)[:used])
        assert _matched(texts[:used], settings, 1.5 * np.log(2))["nfe"] == pytest.approx(7)


def test_an_entropy_that_no_temperature_reaches_has_no_perplexity():
    found = _matched([judged(2, 1.0), judged(4, 3.0)], Settings(temperatures=(0.5, 1.0)), 2.0)
    assert found.pop("nfe") == 2.0
    assert set(found.values()) == {None}


SETTINGS = Settings(
    num_steps=(2, 4, 8), num_texts=5, temperatures=(0.5, 1.0), modes="grid first-hitting"
)


@pytest.fixture
def titles():
    """What the progress of each decoder, number of steps and temperature was called."""
    return []


@pytest.fixture
def subject(model, run, monkeypatch, titles):
    """A model whose texts at n steps have 1 + 2 / n nats at real text's entropy, 0.04 more with the grid."""

    def judged_texts(_subject, _record, _setup, writer, title):
        titles.append(title)
        sampler = writer.inputs["sampler"]
        nats = 1 + 2 / sampler["num_steps"] + 0.04 * (sampler["mode"] == "grid")
        cold = sampler["temperature"] == 0.5
        return judged(2, nats - 0.5) if cold else judged(4, nats + 0.5)

    at = "sdtt_jax.evaluation.suites"
    monkeypatch.setattr(f"{at}.generation.judged_texts", judged_texts)
    monkeypatch.setattr(f"{at}.frontier.unigram_entropy", _entropies)
    real = np.zeros((2, 8), np.int32)
    monkeypatch.setattr(f"{at}.frontier.held_out", lambda *_: real)
    fields = {"facts": {"path": "judge"}, "fingerprint": {}, "tokenizer": None}
    fields["network"] = types.SimpleNamespace(max_length=1024)
    causal = dataclasses.make_dataclass("Judge", fields)(**fields)
    return Subject(model, SETTINGS, causal, data=run)


def _entropies(texts):
    """For real text, which is all zeros here, half-way between the entropies of two and of four tokens."""
    return np.array([np.log(len(set(text.tolist())) if text.any() else 2**1.5) for text in texts])


def test_every_decoder_has_its_lowest_clean_number_of_calls(subject, tmp_path):
    """The best, exp(1.25), is first-hitting's at 8 steps: exp(1.29) is within 5 %, exp(1.5) is not."""
    record = Record(tmp_path / "frontier.json", subject.model.identity)
    suite(subject, record)
    found = record.items
    for mode, extra in (("grid", 0.04), ("first-hitting", 0.0)):
        for steps in (2, 4, 8):
            item = found[f"frontier/matched/{mode}/steps_{steps:04d}"]
            assert item["gen_ppl"] == pytest.approx(np.exp(1 + 2 / steps + extra))
        clean = found[f"frontier/clean/{mode}"]
        assert clean["best"] == pytest.approx(np.exp(1.25))
        assert clean["gen_ppl"] == pytest.approx(np.exp(1.25 + extra))
        assert clean["clean_calls"] == 2.0  # as set in `judged`


def test_progress_says_which_decoder_and_temperature_is_at_work(subject, tmp_path, titles):
    """All were called generation/frontier/steps_0002 and so on. Oracle: the settings, in their order."""
    suite(subject, Record(tmp_path / "frontier.json", subject.model.identity))
    assert titles[0] == "2 steps, grid, temperature 0.5"
    assert len(titles) == len(set(titles)) == 2 * 3 * 2
    # A terminal of 60 columns leaves 27 letters; the steps of "first-hitting, 2 steps, …" were lost there.
    assert len({shortened(title, 27) for title in titles}) == len(titles)


def test_a_clean_number_of_calls_is_none_that_was_tried_alone(subject, tmp_path):
    """With 2 and 4 steps the best, exp(1.5), is at the most steps, and more could be better still."""
    subject = dataclasses.replace(
        subject, settings=dataclasses.replace(subject.settings, num_steps=(2, 4))
    )
    record = Record(tmp_path / "frontier.json", subject.model.identity)
    suite(subject, record)
    assert record.items["frontier/clean/first-hitting"]["most_tried"] is True


def test_where_one_perplexity_is_not_known_no_number_of_calls_is_clean(
    subject, tmp_path, monkeypatch
):
    """At 8 steps, which are the best, the entropy of real text is not reached."""
    matched = frontier._matched

    def reached(judged, settings, target):
        found = matched(judged, settings, target)
        return found | {"gen_ppl": None} if found["gen_ppl"] < np.exp(1.27) else found

    monkeypatch.setattr(frontier, "_matched", reached)
    record = Record(tmp_path / "frontier.json", subject.model.identity)
    suite(subject, record)
    assert not [name for name in record.items if name.startswith("frontier/clean")]


def test_what_is_clean_is_found_among_all_that_was_measured_also_by_earlier_calls(
    subject, tmp_path
):
    """Grid is clean at its 2 steps, exp(2.04), if alone, and at 8 beside the exp(1.25) of first-hitting."""
    path = tmp_path / "frontier.json"

    def measure(subject=subject, **settings):
        settings = dataclasses.replace(subject.settings, **settings)
        record = Record(path, subject.model.identity)
        suite(dataclasses.replace(subject, settings=settings), record)
        found = Record(path, subject.model.identity).items
        head = "frontier/clean/"
        return {k.removeprefix(head): v for k, v in found.items() if k.startswith(head)}

    assert measure(num_steps=(2,), modes="grid")["grid"]["most_tried"] is True
    beside = measure(num_steps=(8,), modes="first-hitting")
    assert beside["grid"]["clean_calls"] is None
    assert beside["grid"]["best"] == beside["first-hitting"]["best"] == pytest.approx(np.exp(1.25))
    assert measure(num_steps=(8,), modes="grid")["grid"]["gen_ppl"] == pytest.approx(np.exp(1.29))
    # What another judge scored is not compared with it, and stays.
    other = dataclasses.replace(
        subject, judge=dataclasses.replace(subject.judge, facts={"path": "other"})
    )
    apart = measure(other, num_steps=(2,), modes="grid")
    assert apart["grid"]["best"] == pytest.approx(np.exp(2.04))
    assert apart["first-hitting"]["best"] == pytest.approx(np.exp(1.25))


def test_what_is_no_longer_known_to_be_clean_is_removed(subject, tmp_path, monkeypatch):
    matched, path = frontier._matched, tmp_path / "frontier.json"
    suite(subject, Record(path, subject.model.identity))
    monkeypatch.setattr(frontier, "_matched", lambda *given: matched(*given) | {"gen_ppl": None})
    settings = dataclasses.replace(
        subject.settings, num_steps=(8,), modes="grid", temperatures=(0.5, 1.5)
    )
    lines = []
    record = Record(path, subject.model.identity, lines.append)
    suite(dataclasses.replace(subject, settings=settings), record)
    items = Record(path, subject.model.identity).items
    assert not [name for name in items if name.startswith("frontier/clean")]
    assert "not known, for grid/steps_0008 could be the best" in lines[-1]


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ({"data": None}, "no held-out text: .* Give --held_out=FILE"),
        ({"judge": None}, "needs a --judge"),
        ({"settings": Settings(temperatures=(1.0,))}, "give at least two"),
        ({"settings": Settings(modes="grid blocks:length=5")}, "blocks of 5 do not divide 12"),
        ({"settings": Settings(modes="grid learnt")}, "a schedule of 4 calls is not stored"),
    ],
)
def test_what_it_cannot_do_without_is_named(subject, missing, said):
    with pytest.raises(ConfigError, match=said):
        check(dataclasses.replace(subject, **missing))


def test_real_text_is_cut_as_what_is_compared_with_it(model):
    """Oracle: entropies by hand; n different tokens have log(n), and the first EOS is one of them."""
    bos, eos = model.tokenizer.bos_id, model.tokenizer.eos_id
    packed = np.array([[5, 6, 7, eos, 8, 9, 10, 11]] * 3, np.int32)
    prompted = np.array([[8, 9, bos, 5, 6, 7, eos, eos]], np.int32)
    padded = np.array([[5, 6, 7, eos, eos, eos, eos, eos]], np.int32)
    for facts, real, ends, expected in (
        ({}, packed, "keep", np.log(8)),
        ({}, packed, "cut", np.log(4)),
        ({"sequences": "prompted"}, prompted, "keep", np.log(4)),
        ({"sequences": "padded"}, padded, "keep", np.log(4)),
        ({"sequences": "prompted"}, prompted, "cut", np.log(4)),
    ):
        asked = dataclasses.replace(model, facts=model.facts | facts)
        found = real_entropy(Subject(asked, Settings(ends=ends)), real)
        assert found == pytest.approx(expected)
