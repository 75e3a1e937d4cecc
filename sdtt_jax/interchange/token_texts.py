"""Exports a tokenizer's decoding as plain data, for programs that do not have the tokenizer."""

import itertools
import re
from collections.abc import Iterable
from typing import Any

from sdtt_jax.data import SentencePieceTokenizer, Tokenizer

UNREADABLE = "\ufffd"  # what bytes that are not UTF-8 decode to
_BYTE = re.compile("<0x([0-9A-F]{2})>")


def token_texts(tokenizer: Tokenizer) -> dict[str, Any]:
    """What `read_tokens` needs to decode as the tokenizer does; JSON-ready.

    * `pieces`: the text of each id within a text, between other ids: decoders keep the spaces around a word.
      None for an id without a token (a padded vocabulary's), which decoders leave out.
    * `first`: by id, the texts that differ at the start of a text.
    * `strips`: whether all spaces at the start of a text are dropped, or only one.
    * `bytes`: by id, in hexadecimal, the bytes of ids that spell a part of a character.
    * `unreadable`: which bytes become U+FFFD where ids spell no UTF-8: "run", all of a run of such ids;
      "byte", each that is wrong; "part", each part of a character that is.
    * `ends`: BOS and EOS.
    * `spaced`: the ids whose piece ends in a space that is left out before MASK and at the end of a text.
    """
    special = {tokenizer.bos_id, tokenizer.eos_id}
    alone = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    pieces, first, spelt, unreadable = [], {}, {}, "part"
    for token in range(tokenizer.vocab_size):
        name = tokenizer.name_of(token)
        piece = tokenizer.decode([token], behind=True)
        pieces.append(None if name is None else piece + " " * tokenizer.ends_word(token))
        if token in special or name is None:
            continue
        if alone[token] != piece:
            first[str(token)] = alone[token]
        byte = _BYTE.fullmatch(name)
        if byte and name not in piece:  # the vocabulary falls back to bytes
            spelt[str(token)] = byte[1]
            unreadable = "byte" if isinstance(tokenizer, SentencePieceTokenizer) else "run"
        elif UNREADABLE in alone[token] and (found := _byte_level(name)):
            spelt[str(token)] = found
    space = next((i for i, text in enumerate(pieces) if text == " " and not alone[i]), None)
    return {
        "pieces": pieces,
        "first": first,
        "strips": space is not None and not tokenizer.decode([space, space]),
        "bytes": spelt,
        "unreadable": unreadable,
        "ends": sorted(special),
        "spaced": [i for i in range(tokenizer.vocab_size) if tokenizer.ends_word(i)],
    }


def read_tokens(info: dict[str, Any], row: Iterable[int]) -> str:
    """The text of a row of ids, as `Tokenizer.decode` reads it."""

    size = len(info["pieces"])
    row = [i for i in map(int, row) if not 0 <= i < size or info["pieces"][i] is not None]

    def kind(i: int) -> str:
        known = 0 <= i < size
        return "end" if i in info["ends"] else "text" if known else "mask"

    def spelt(data: bytes) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            if info["unreadable"] == "part":
                return data.decode("utf-8", "replace")
            if info["unreadable"] == "run":
                return "\ufffd" * len(data)
        read = data.decode("utf-8", "surrogateescape")
        return "".join("\ufffd" if "\udc80" <= c <= "\udcff" else c for c in read)

    texts = [""]
    for what, run in itertools.groupby(row, kind):
        ids = list(run)
        if what == "end":
            texts += [""] if texts[-1] else []
        elif what == "mask":
            texts[-1] += "▒" * len(ids)
        else:
            parts: list[str] = []
            # Only at the start of a text; after MASK it continues.
            while not texts[-1] and len(parts) < len(ids) and not "".join(parts):
                token = str(ids[len(parts)])
                if token in info["bytes"] or token not in info["first"]:
                    break
                parts.append(info["first"][token])
                if not info["strips"]:
                    break
            for in_bytes, some in itertools.groupby(
                ids[len(parts) :], lambda i: str(i) in info["bytes"]
            ):
                begun, these = bool(texts[-1] or parts), list(some)
                table = info["bytes"] if in_bytes else info["pieces"]
                read = "".join(table[str(i) if in_bytes else i] for i in these)
                read = spelt(bytes.fromhex(read)) if in_bytes else read
                # Where the space before a text is dropped, so is one that is spelt in bytes.
                dropped = in_bytes and not begun and str(these[0]) in info["first"]
                parts.append(read.removeprefix(" ") if dropped else read)
            if ids[-1] in info["spaced"]:
                parts[-1] = parts[-1].removesuffix(" ")
            texts[-1] += "".join(parts)
    return "\n".join(texts if texts[-1] else texts[:-1])


def _byte_level(name: str) -> str | None:
    """The bytes of a byte-level token, in hexadecimal; None if its name is not of that kind."""
    known = all(character in _BYTE_OF for character in name)
    return bytes(_BYTE_OF[character] for character in name).hex() if known else None


def _bytes_of_characters() -> dict[str, int]:
    """The characters by which byte-level vocabularies write bytes: printable Latin-1, and from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + number): byte for number, byte in enumerate(rest)
    }


_BYTE_OF = _bytes_of_characters()
