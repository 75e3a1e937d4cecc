"""Oracle: the sentences as they stood before their benchmark's tokeniser took them apart."""

import time

import pytest

from sdtt_jax.data.detokenize import DETOKENIZERS

CASES = [
    ("ptb", "the company 's shares do n't rise", "the company's shares don't rise"),
    ("ptb", "the companies ' shares", "the companies' shares"),
    (
        "ptb",
        "it paid $ N million -lrb- net -rrb- , he said .",
        "it paid $1 million (net), he said.",
    ),
    ("ptb", "`` we 're <unk> , '' she said", '"we\'re <unk>," she said'),
    ("ptb", "a loss \\/ gain of 3 \\/ 4", "a loss/gain of 3/4"),
    ("wikitext", "a 12 @,@ 500 @.@ 5 long @-@ term plan", "a 12,500.5 long-term plan"),
    ("wikitext", " = = Early life = = ", " == Early life == "),
    ("wikitext", " = = = Works = = = ", " === Works === "),
    ("wikitext", 'the song " Help " , a hit', 'the song "Help", a hit'),
    ("wikitext", "Valkyria ( lit . <unk> ) is Sega 's", "Valkyria (lit. <unk>) is Sega's"),
    ("wikitext", "at 15 ° C ; and", "at 15°C; and"),
    ("wikitext", "first \n second", "first\nsecond"),
    ("lm1b", "He said it 's fine , is n't it ?", "He said it's fine, isn't it?"),
    ("lm1b", "see http : / / www.example.com", "see http://www.example.com"),
    ("lm1b", 'a " well - known " man ( 42 ) .', 'a "well-known" man (42).'),
    ("lambada", "“ hello , ” he said .", '" hello , " he said .'),
    ("lambada", "`` hello , '' he said .", '" hello , " he said .'),
    ("scientific_papers", "we show that x ( t ) grows .\n so", "we show that x (t) grows.\nso"),
]


@pytest.mark.parametrize(("corpus", "tokenized", "running"), CASES)
def test_tokenised_text_becomes_running_text(corpus, tokenized, running):
    assert DETOKENIZERS[corpus](tokenized) == running


@pytest.mark.parametrize("corpus", DETOKENIZERS)
def test_running_text_is_left_alone(corpus):
    text = "He said: \"They can't all be the boys' (or girls') toys; it's 5.5% of 1,200!\""
    assert DETOKENIZERS[corpus](text) == text


@pytest.mark.parametrize("corpus", DETOKENIZERS)
def test_a_long_run_of_spaces_costs_what_it_is_long(corpus):
    """Oracle: seconds. Each space was once the start of a search to the run's end: 1 to 5 s, now 0.01."""
    text = f"a{' ' * 25_000}b"
    began = time.process_time()
    assert DETOKENIZERS[corpus](text) == text
    assert time.process_time() - began < 0.5
