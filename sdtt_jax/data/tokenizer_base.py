"""The base of all tokenizers: converts whole texts and parts of texts to ids and back."""

import abc
import contextlib
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sdtt_jax.config import require
from sdtt_jax.data.config import TokenizerConfig
from sdtt_jax.data.normalize import (
    NORMALIZERS,
    require_characters,
    require_text,
    without_traces_of_files,
)
from sdtt_jax.errors import ConfigError, DataError, UserError

MASK_PIECE = "▒"
# Characters to encode a text after; a vocabulary may merge some of them with the text, but hardly all.
_ANCHORS = "☺.a0\nQx"


class Tokenizer(abc.ABC):
    """Text to ids and back.

    Attributes:
      config: what it was made from.
      normalize: name, in `NORMALIZERS`, of the normalisation that `encode` applies first.
      vocab_size: number of ids, MASK not counted.
      digest: SHA-256 of its model file; equal digests, equal ids.
      bos_id, eos_id: never produced by `encode`; they come from packing only.
      unk_id: the id of characters that no other id can spell; None if there are no such characters.
    """

    config: TokenizerConfig
    normalize: str
    vocab_size: int
    digest: str
    bos_id: int
    eos_id: int
    unk_id: int | None = None

    @property
    def mask_id(self) -> int:
        return self.vocab_size

    def encode(self, text: str, *, behind: bool = False) -> np.ndarray:
        """Text to int32 ids `[n]`, without BOS and EOS.

        Args:
          text: a whole text, or the end of one.
          behind: whether it follows other text. Tokenizers that put a space before each text then put none
            before this one.
        """
        [ids] = self.encode_batch([text])
        return self._behind(NORMALIZERS[self.normalize](text), ids) if behind else ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Texts to a list of int32 ids `[n_i]`, without BOS and EOS."""
        right = isinstance(texts, Iterable) and not isinstance(texts, str | bytes)
        require(right, f"encode_batch takes a list of texts, not {texts!r:.60}.")
        texts = list(texts)
        for text in texts:
            require_text(text)
        normalize = NORMALIZERS[self.normalize]
        return self.encode_normalized([normalize(text) for text in texts])

    def encode_normalized(
        self, texts: list[str], error: type[UserError] = DataError
    ) -> list[np.ndarray]:
        """Already normalised texts, or parts of them, to a list of int32 ids `[n_i]`.

        `error` is raised if a text holds half of a surrogate pair.
        """
        for text in texts:
            require_characters(text, error)
        return [np.asarray(row, np.int32) for row in self._encode_batch(texts)]

    def encode_piece(
        self, text: str, error: type[UserError] = DataError, *, behind: bool = False
    ) -> np.ndarray:
        """Part of a longer text to int32 ids `[n]`, keeping spaces at its beginning and end.

        Normalisation strips whole documents; a prompt or the text between two gaps is not one. `error` is as
        for `encode_normalized`, `behind` as for `encode`.
        """
        require_text(text)
        # Between two letters, which every normalisation leaves alone.
        normalized = NORMALIZERS[self.normalize](f"a{text}a")[1:-1]
        [ids] = self.encode_normalized([normalized], error)
        return self._behind(normalized, ids) if behind else ids

    def _behind(self, text: str, alone: np.ndarray) -> np.ndarray:
        """A normalised text to ids `[n]` after other text, given its ids `alone: [n]` as a whole text.

        They differ if the ids decode to one space more than the text has. It is then encoded after a
        character that does not merge with it. If there is none, the space stays.
        """
        read = self.decode(alone, behind=True)
        if _spaces(read) <= _spaces(text):
            return alone
        for anchor in _ANCHORS:
            with contextlib.suppress(DataError):  # a vocabulary that has neither the anchor nor unk
                start, both = self._encode_batch([anchor, anchor + text])
                found = both[len(start) :]
                if both == start + found and self.decode(found, behind=True) == read[1:]:
                    return np.asarray(found, np.int32)
        return alone

    def encode_part(self, text: str, *, behind: bool = False) -> np.ndarray:
        """`encode_piece` of user input, with line ends normalised as in a file (`without_traces_of_files`).

        `ConfigError` if nothing of the text is left (see `reads`).
        """
        ids = self.encode_piece(without_traces_of_files(text), ConfigError, behind=behind)
        require(self.reads(text, ids), f"{text!r} {self.reads_nothing}.")
        return ids

    def reads(self, text: str, ids: Iterable[int]) -> bool:
        """Whether the ids keep more of the text than white space and unk; True for a blank text."""
        known = [int(token) for token in ids if token != self.unk_id]
        return not text.strip() or bool(self._decode_run(known).strip())

    @property
    def reads_nothing(self) -> str:
        """The end of an error message about a text of which `reads` is False."""
        dropped = f" after normalize={self.normalize!r}" * (self.normalize != "none")
        nothing = f"holds nothing that the vocabulary knows{dropped}"
        return f"{nothing}; give text like that of the corpus"

    def decode(
        self,
        ids: Iterable[int],
        *,
        mask: str = MASK_PIECE,
        separator: str = "\n",
        behind: bool = False,
    ) -> str:
        """Ids to text.

        Args:
          ids: `[n]` integers, in any range.
          mask: what MASK and ids out of range become; `""` leaves them out.
          separator: what a BOS or EOS (or several in a row) between two texts becomes. At the
            beginning and end they vanish.
          behind: whether they follow other text. A leading space is then kept even by tokenizers that put
            one before each text and remove it when decoding.
        """
        texts = [""]
        for kind, run in itertools.groupby(one_text(ids), self._kind):
            if kind == "end":
                texts += [""] if texts[-1] else []
                behind = False
            elif kind == "text":
                read = self._decode_behind if behind or texts[-1] else self._decode_run
                texts[-1] += read(list(run))
            else:
                texts[-1] += mask * len(list(run))
        return separator.join(texts if texts[-1] else texts[:-1])

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text of each id on its own, for animations; as many as there are ids.

        BOS and EOS are `""`; MASK and ids out of range are `MASK_PIECE`. Joined, the pieces read like
        `decode`, except that a character spelled by several byte tokens shows as U+FFFD.
        """
        found, before = [], "end"
        for token, following in itertools.pairwise([*one_text(ids), self.eos_id]):
            kind = self._kind(token)
            if kind == "text":
                text = self._decode_run([token]) if before == "end" else self._piece(token)
                spaced = self.ends_word(token) and self._kind(following) == "text"
                found.append(text + " " * spaced)
            else:
                found.append(MASK_PIECE if kind == "mask" else "")
            before = kind
        return found

    def count_lost(self, text: str) -> int:
        """How many characters (or bytes) of a text vanish when it is encoded, where there is no unk."""
        del text
        return 0

    @functools.cached_property
    def _letter(self) -> int | None:
        """A token that reads as letters or digits; None if there is none."""
        texts = (token for token in range(self.vocab_size) if self._kind(token) == "text")
        letters = (token for token in texts if self._decode_run([token]).isalnum())
        return next((token for token in letters if not self.ends_word(token)), None)

    def _decode_behind(self, ids: list[int]) -> str:
        """`_decode_run` of ids that follow other text, for which a letter stands here."""
        if self._letter is not None:
            start, both = self._decode_run([self._letter]), self._decode_run([self._letter, *ids])
            if both.startswith(start):  # damaged bytes may take the letter with them
                return both[len(start) :]
        return self._decode_run(ids)

    def _kind(self, token: int) -> str:
        if token in (self.bos_id, self.eos_id):
            return "end"
        return "text" if 0 <= token < self.vocab_size else "mask"

    @abc.abstractmethod
    def _encode_batch(self, texts: list[str]) -> list[list[int]]: ...

    @abc.abstractmethod
    def _decode_run(self, ids: list[int]) -> str:
        """Text of ids that are neither special nor out of range."""

    def _piece(self, token: int) -> str:
        """Text of a token that follows other text."""
        return self._decode_behind([token])

    def ends_word(self, token: int) -> bool:
        """Whether decoding puts a space between the token and the next one, as for `</w>` in some BPE."""
        del token
        return False

    @abc.abstractmethod
    def name_of(self, token: int) -> str | None:
        """A token as its vocabulary writes it; None for an id that belongs to no token."""


def one_text(ids: Iterable[int]) -> list[int]:
    """The ids of one text, in any range, as a list; an array, of NumPy or JAX, is fetched all at once.

    Raises:
      ConfigError: they are not whole numbers `[length]`.
    """
    listed = not hasattr(ids, "shape") and isinstance(ids, Iterable)
    several = list(ids) if listed else ids
    if listed and all(type(token) is int for token in several):
        return several  # type: ignore[return-value]  # NumPy has no dtype for numbers beyond 64 bits
    try:
        array: Any = np.asarray(several)
    except ValueError:
        raise ConfigError(
            "ids must be whole numbers [length], not rows of other lengths; decode one text at a time."
        ) from None
    require(
        array.ndim == 1 and (array.size == 0 or np.issubdtype(array.dtype, np.integer)),
        f"ids must be whole numbers [length], not {array.dtype}{list(array.shape)}; decode one text at a "
        "time.",
    )
    return array.tolist()


def _spaces(text: str) -> int:
    return len(text) - len(text.lstrip(" "))
