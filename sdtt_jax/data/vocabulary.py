"""Trains SentencePiece on a sample of the corpus, and explains its errors about the vocabulary's size."""

import io
import re
from collections.abc import Iterable, Iterator

import sentencepiece

from sdtt_jax.data.config import TokenizerConfig
from sdtt_jax.data.normalize import require_characters
from sdtt_jax.errors import ConfigError, DataError

SPACE_SYMBOL = "▁"
# SentencePiece drops a line end at the end of a training sentence and skips sentences that hold one of the
# others, so these are given to it as pieces instead.
_GIVEN_PIECES = ("\n", "\r", "\t", "\x1f", "▅")
_NUL = "\0"  # is dropped too, and no piece can spell it
_SEGMENT_CHARACTERS = 500


class Sample:
    """Evenly spaced segments of a stream of documents, in bounded memory.

    Attributes:
      segments: between `limit` and `2 * limit` of them, or all if there are fewer.
      characters: all characters of the stream, sampled or not, each with the number, from 1, of its first
        document.
    """

    def __init__(self, texts: Iterable[str], limit: int):
        self.segments: list[str] = []
        self.characters: dict[str, int] = {}
        stride = 1
        for index, segment in enumerate(self._segments(texts)):
            if index % stride:
                continue
            self.segments.append(segment)
            if len(self.segments) > 2 * limit:
                self.segments = self.segments[::2]
                stride *= 2

    def _segments(self, texts: Iterable[str]) -> Iterator[str]:
        """Cuts documents before spaces into stretches that SentencePiece accepts (4192 bytes)."""
        for number, text in enumerate(texts, start=1):
            text = text.replace(SPACE_SYMBOL, " ")
            new = set(text).difference(self.characters)
            require_characters("".join(new))
            self.characters |= dict.fromkeys(new, number)
            for line in re.split(f"[{''.join(_GIVEN_PIECES)}]", text.replace(_NUL, "")):
                start = 0
                while start < len(line):
                    end = line.find(" ", start + _SEGMENT_CHARACTERS)
                    # Text without spaces (or in a script that has none) is cut anywhere.
                    if end < 0 or end > start + 2 * _SEGMENT_CHARACTERS:
                        end = min(len(line), start + 2 * _SEGMENT_CHARACTERS)
                    yield line[start:end]
                    start = end


def learn_pieces(config: TokenizerConfig, sample: Sample) -> bytes:
    """Trains a SentencePiece model, without any normalisation of its own, and returns its file.

    Raises:
      ConfigError: `tokenizer.vocab_size` does not suit the text; the message says which sizes do.
      DataError: there is no text.
    """
    if not sample.segments:
        raise DataError("The train split holds no text to learn a vocabulary from.")
    alphabet = sorted(set(sample.characters) - {_NUL})
    given = sorted(set(alphabet) & set(_GIVEN_PIECES))
    # These ensure that no character of the train split becomes unk because its segment was not drawn.
    missing = "".join(sorted(set(alphabet).difference(given, *sample.segments)))
    step = 2 * _SEGMENT_CHARACTERS
    sentences = sample.segments + [missing[i : i + step] for i in range(0, len(missing), step)]
    model = io.BytesIO()
    limited = config.model_type == "char"
    size = config.vocab_size
    specials = 3 + (256 if config.byte_fallback else 0)
    smallest = len(alphabet) + specials
    if size < smallest:
        # The most that the config takes.
        remedy = "set it to that" if smallest < 2**16 else "choose tokenizer.kind='gpt2'"
        raise ConfigError(
            f"tokenizer.vocab_size {size} is too small for the corpus: {len(alphabet)} characters and "
            f"{specials} special pieces need at least {smallest}; {remedy}."
        )
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=config.model_type,
            vocab_size=min(size, smallest) if limited else size,
            hard_vocab_limit=not limited,
            character_coverage=1.0,
            byte_fallback=config.byte_fallback,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            user_defined_symbols=given,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            # The usual `<unk>`, `<s>` and `</s>` would be cut out of texts that contain them
            # (Penn Treebank and WikiText do); a private-use character is in no text.
            unk_piece="\ue000unk",
            bos_piece="\ue000bos",
            eos_piece="\ue000eos",
            unk_surface="⁇",
            num_threads=1,  # The order of floating-point sums, hence the model, depends on it.
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise _vocabulary_error(size, str(error)) from None
    return model.getvalue()


def _vocabulary_error(size: int, message: str) -> ConfigError:
    largest = re.search(r"<=\s*(\d+)", message)
    if "too high" in message and largest:
        return ConfigError(
            f"tokenizer.vocab_size {size} is too large for the corpus; the largest that works "
            f"is {largest[1]}."
        )
    reason = (message.strip().splitlines() or ["no reason given"])[-1]
    return ConfigError(
        f"tokenizer.vocab_size {size} does not suit the corpus (SentencePiece says: {reason}); "
        "try a smaller one."
    )
