"""Detokenizers: benchmark text, which comes with its tokens set apart, back to running text.

Zero-shot perplexities are reported on detokenised text (MDLM, arXiv 2406.07524, section 5; the
practice goes back to GPT-2). Each corpus has its own conventions, so each has its own table of
rewrites, applied in order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Rules = Sequence[tuple[re.Pattern[str], str]]


def _rules(*pairs: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


def _apply(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


# Pieces of spacing that several corpora share.
_CLOSING = (r" +([,;:.!?%)\]}])", r"\1")
_OPENING = (r"([(\[{$]) +", r"\1")
_CONTRACTIONS = (r"(?<=\w) +('(?:s|m|d|re|ve|ll|t|S)\b)", r"\1")
_NEGATION = (r"(?<=\w) +n't\b", "n't")
# Straight quotes say nothing about their side: they pair up within a line.
_PAIRED_QUOTES = (r'(?<!\w)" ([^"\n]*?) "', r'"\1"')

_PTB = _rules(
    (r"-lrb-", "("),
    (r"-rrb-", ")"),
    (r"-LRB-", "("),
    (r"-RRB-", ")"),
    (r" \\/ ", "/"),
    (r"\\/", "/"),
    (r"`` *", '"'),
    (r" *''", '"'),
    _CONTRACTIONS,
    _NEGATION,
    (r"(?<=s) +'(?= |$)", "'"),
    _CLOSING,
    _OPENING,
    (r" +-- +", " -- "),
)

_WIKITEXT = _rules(
    (r" @([-,.])@ ", r"\1"),
    _CONTRACTIONS,
    _NEGATION,
    (r"(?<=s) +'(?= )", "'"),
    _PAIRED_QUOTES,
    (r"(?<![\w'])' ([^'\n]*?) '(?!\w)", r"'\1'"),
    _OPENING,
    _CLOSING,
    (r"= (=+) ", r"=\1 "),
    (r" (=+) =(?= |$)", r" \1="),
    (r" +° +", "°"),
    (r" *\n *", "\n"),
)

_LM1B = _rules(
    (r"http : / / ", "http://"),
    (r"https : / / ", "https://"),
    _CONTRACTIONS,
    _NEGATION,
    (r"(?<=s) +'(?= )", "'"),
    (r"(?<=[A-Za-z]) - (?=[A-Za-z])", "-"),
    (r"(?<=\d) , (?=\d{3}\b)", ","),
    (r"(?<=\d) \. (?=\d)", "."),
    _PAIRED_QUOTES,
    _OPENING,
    _CLOSING,
    (r" +\.\.\.", "..."),
)

# LAMBADA's book text uses typographic and TeX-like quotes beside straight ones; GPT-2 scored it
# with straight quotes and untouched spacing.
_LAMBADA = _rules(
    (r"[“”]|``|''", '"'),
    (r"[‘’]", "'"),
    (r"\n+", "\n"),
)

_SCIENTIFIC = _rules(
    _CONTRACTIONS,
    _NEGATION,
    _OPENING,
    _CLOSING,
    (r" \n ", "\n"),
    (r"(?<=\w) +- +(?=\w)", "-"),
)


def identity(text: str) -> str:
    return text


def ptb(text: str) -> str:
    """Penn Treebank: brackets, quotes, contractions; `<unk>` and the number sign N stay."""
    return _apply(_PTB, text)


def wikitext(text: str) -> str:
    """WikiText: `@-@`, `@,@` and `@.@`, headings, quotes and spacing; `<unk>` stays."""
    return _apply(_WIKITEXT, text)


def lm1b(text: str) -> str:
    """One Billion Words: spacing, contractions, hyphens and addresses."""
    return _apply(_LM1B, text)


def lambada(text: str) -> str:
    """LAMBADA: typographic and doubled quotes become straight ones, blank lines vanish."""
    return _apply(_LAMBADA, text).strip()


def scientific_papers(text: str) -> str:
    """The arXiv and PubMed corpora of `scientific_papers`: spacing and line ends."""
    return _apply(_SCIENTIFIC, text)


DETOKENIZERS: dict[str, Callable[[str], str]] = {
    "none": identity,
    "ptb": ptb,
    "wikitext": wikitext,
    "lm1b": lm1b,
    "lambada": lambada,
    "scientific_papers": scientific_papers,
}
