"""Detokenizers turn a benchmark's tokenized text back into running text.

Zero-shot perplexities are reported on detokenised text (MDLM, arXiv 2406.07524, section 5; the
practice goes back to GPT-2). Each corpus has its own conventions, so each has its own table of
rewrites, applied in order.
"""

import functools
import re
from collections.abc import Callable, Sequence

Replacement = str | Callable[[re.Match[str]], str]


def _rules(*pairs: tuple[str, Replacement]) -> Callable[[str], str]:
    """The function that applies these rules to a text."""
    rules = [(re.compile(pattern), replacement) for pattern, replacement in pairs]
    return functools.partial(_apply, rules)


def _apply(rules: Sequence[tuple[re.Pattern[str], Replacement]], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


# Rules for spacing that several corpora share. `(?<! ) +` begins where a run of spaces does: else each of its
# spaces is looked at once for every one before it (40,000 of them in a row took 11 s).
_CLOSING = (r"(?<! ) +([,;:.!?%)\]}])", r"\1")
_LINE_ENDS = (r"(?:(?<! ) +)?\n *", "\n")
_OPENING = (r"([(\[{$]) +", r"\1")
_CONTRACTIONS = (r"(?<=\w) +('(?:s|m|d|re|ve|ll|t|S)\b)", r"\1")
_NEGATION = (r"(?<=\w) +n't\b", "n't")
# Straight quotes do not show which side they are on: they are paired up within a line.
_PAIRED_QUOTES = (r'(?<!\w)" ([^"\n]*?) "', r'"\1"')

# The benchmarks' sign for any number; published perplexities are of text with a digit there.
_NUMBER_SIGN = (r"(?<= )N(?= )", "1")
_PLURAL_POSSESSIVE = (r"(?<=s) +'(?= |$)", "'")

DETOKENIZERS: dict[str, Callable[[str], str]] = {
    "none": str,
    # Penn Treebank: brackets, quotes, contractions; N becomes 1, and `<unk>` stays.
    "ptb": _rules(
        (r"-(?:lrb|LRB)-", "("),
        (r"-(?:rrb|RRB)-", ")"),
        (r" ?\\/ ?", "/"),
        (r"`` *", '"'),
        (r"(?:(?<! ) +)?''", '"'),
        _CONTRACTIONS,
        _NEGATION,
        _PLURAL_POSSESSIVE,
        _NUMBER_SIGN,
        _CLOSING,
        _OPENING,
        _LINE_ENDS,
    ),
    # WikiText: `@-@`, `@,@` and `@.@`, headings, quotes, spacing; N becomes 1.
    "wikitext": _rules(
        (r" @([-,.])@ ", r"\1"),
        _CONTRACTIONS,
        _NEGATION,
        _PLURAL_POSSESSIVE,
        _PAIRED_QUOTES,
        _NUMBER_SIGN,
        _CLOSING,
        _OPENING,
        (r"=(?: =)+", lambda signs: signs[0].replace(" ", "")),
        (r"(?<! ) +° +", "°"),
        _LINE_ENDS,
    ),
    # One Billion Words: spacing, contractions, hyphens and addresses.
    "lm1b": _rules(
        (r"\b(https?) : / / ", r"\1://"),
        _CONTRACTIONS,
        _NEGATION,
        _PLURAL_POSSESSIVE,
        (r"(?<=[A-Za-z]) - (?=[A-Za-z])", "-"),
        _PAIRED_QUOTES,
        _CLOSING,
        _OPENING,
    ),
    # LAMBADA: typographic and doubled quotes become straight ones. GPT-2's evaluation also puts a newline
    # before each text; here that is left to the code that scores it.
    "lambada": _rules((r"[“”]|``|''", '"'), (r"^\s+|(?<!\s)\s+$", "")),
    # The arXiv and PubMed corpora: spacing and line ends.
    "scientific_papers": _rules(
        _CONTRACTIONS,
        _NEGATION,
        _PLURAL_POSSESSIVE,
        _CLOSING,
        _OPENING,
        _LINE_ENDS,
    ),
}
