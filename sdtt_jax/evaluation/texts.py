"""The texts that an evaluation reads: held-out text of the run, files, named sets, lines of JSON."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sdtt_jax.config import require
from sdtt_jax.data import DataConfig, Split, Tokenizer, open_split
from sdtt_jax.data.corpora import CORPORA, TRAIN, Corpus, documents, find_corpus
from sdtt_jax.data.normalize import without_traces_of_files
from sdtt_jax.data.packing import encode_documents, pack
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.evaluation.subject import OWN, Subject
from sdtt_jax.formats import parse_json, text_lines
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.ops.sequences import Sequences, unpadded
from sdtt_jax.ops.tokens import as_ids
from sdtt_jax.paths import as_path

# A corpus, its split, and the folder of its files, if one is given.
Source = tuple[Corpus, str, Path | None]


def held_out_name(subject: Subject) -> str:
    """Where held-out text comes from, for messages and for the record; "" if there is none.

    The run of a validation split is not named: the model's path says which one it is.
    """
    if subject.settings.held_out:
        corpus, split, folder = _held_out_corpus(subject)
        # A named set without a split for evaluation is read as its models were trained on it.
        trained = "train split" if split == TRAIN and corpus.name in CORPORA else ""
        remarks = ", ".join(filter(None, (trained, corpus.files(split, folder))))
        return subject.settings.held_out + (f" ({remarks})" if remarks else "")
    return "validation split of the run" if subject.data is not None else ""


def require_held_out(subject: Subject) -> None:
    """Raises an error if there is no held-out text, or no tokenizer to read it with."""
    require(
        bool(subject.settings.held_out) or subject.data is not None,
        "There is no held-out text: the checkpoint is not in a run with a data folder. Give "
        "--held_out=FILE.",
    )
    if subject.settings.held_out:
        _ = subject.model.text_tokenizer


def held_out(subject: Subject, limit: int | None = None) -> np.ndarray:
    """Held-out sequences of the evaluation's length: `[texts, length]` int32.

    As many as the settings say, or `limit` if that is less: the first of a file, which may be too long to be
    read whole; those of a run's split are spread evenly over it. Sequences whose prompt exceeds the length
    are left out: a prompt without its end would pass for text.

    Raises:
      ConfigError: there is no such text, or the model has no tokenizer to read it with.
      DataError: the text holds less than one sequence.
    """
    require_held_out(subject)
    settings, length = subject.settings, subject.length
    limit = min((n for n in (limit, settings.held_out_texts) if n), default=None)
    if settings.held_out:
        name, source = f"--held_out={settings.held_out}", _held_out_corpus(subject)
        wrap = settings.wrap or _always_wrapped(subject.model)
        return _sequences(subject.model, source, name, length, limit, wrap=wrap)
    assert subject.data is not None
    split = open_split(subject.data, "validation")
    require(
        length <= split.length,
        f"length={length} exceeds the {split.length} tokens of the run's sequences; reduce it.",
    )
    rows = _spread(split, limit)
    _, prompts = unpadded(rows, subject.model.sequences)
    kept = prompts < length
    require(
        bool(kept.any()),
        f"length={length} is no more than the prompt of any held-out sequence; increase it.",
    )
    return rows[kept, :length]


def training_texts(model: Model, flag: str, name: str, data: Path | None, limit: int) -> np.ndarray:
    """Sequences to learn from: `[texts, length]` int32; those of a run's split are spread evenly over it.

    Args:
      model: the model whose tokenizer and length they have.
      flag: the flag that names the text, for errors.
      name: "own", the training split of the model's run; or a file, a folder, or a named corpus, of which the
        training split is taken.
      data: the prepared data of the model's run; None for none.
      limit: how many at most.

    Raises:
      ConfigError, DataError: as `held_out`.
    """
    if name != OWN:
        source, wrap = (find_corpus(name, f"--{flag}"), TRAIN, None), _always_wrapped(model)
        return _sequences(model, source, f"--{flag}={name}", model.config.length, limit, wrap=wrap)
    if data is None:
        raise ConfigError(
            f"--{flag}=own is for a checkpoint in a run with a data folder; give --{flag}=FILE."
        )
    return _spread(open_split(data, TRAIN), limit)


def openings(subject: Subject) -> np.ndarray:
    """Beginnings of texts that prompts are cut from: `[texts, n]` int32.

    n counts the tokens of a prompt, and of its true continuation if enough texts are that long. The texts are
    the lines of `--prompts`, else the held-out documents (in a run's own split, its sequences).
    """
    settings, size = subject.settings, subject.settings.prompt_tokens
    whole, limit = size + settings.continuation_tokens, settings.num_prompts or None
    name = f"--prompts={settings.prompts}" if settings.prompts else held_out_name(subject)
    model = subject.model
    if settings.prompts:
        sources = read_texts(settings.prompts, model.tokenizer, model.config.vocab_size)
    elif settings.held_out:
        texts = _documents(model.text_tokenizer, _held_out_corpus(subject), "--held_out")
        sources = encode_documents(model.text_tokenizer, texts)
    else:
        sources = iter(unpadded(held_out(subject), model.sequences)[0])
    starts: list[np.ndarray] = []
    longest = num_whole = 0
    for tokens in sources:
        longest = max(longest, len(tokens))
        if len(tokens) >= size:
            starts.append(tokens[:whole])
        num_whole += len(tokens) >= whole
        if num_whole == limit:
            break
    # With a whole continuation each if enough texts have one, because MAUVE compares with it.
    if num_whole == min(limit or len(starts), len(starts)):
        rows = [tokens for tokens in starts if len(tokens) == whole]
    else:
        rows = [tokens[:size] for tokens in starts[:limit]]
    require(longest > 0, f"{name} is empty, or all its texts are; give some.")
    require(
        bool(rows),
        f"{name} has no text of prompt_tokens={size} tokens (the longest has {longest}); give a lower "
        "--prompt_tokens, or longer texts.",
    )
    return np.stack(rows).astype(np.int32)


def read_texts(
    path: str, tokenizer: Tokenizer | None, num_ids: int, *, readable: bool = True
) -> Iterator[np.ndarray]:
    """Token ids of JSON lines with the field "text" or "tokens", one line after the other: `[n]` int32.

    The text counts if there is a tokenizer, the tokens if there is none or no text. Errors name the line.

    Args:
      path: of the file.
      tokenizer: of the model that reads them, if it has one.
      num_ids: size of its vocabulary, without MASK.
      readable: refuse a text of which the tokenizer can read nothing.
    """
    for where, line in text_lines(path):
        ids = _line_tokens(parse_json(line, where), tokenizer, where, readable)
        try:
            yield as_ids(ids, num_ids, where)
        except ConfigError as error:
            raise DataError(str(error)) from None


def _line_tokens(record: Any, tokenizer: Tokenizer | None, where: str, readable: bool) -> Any:
    record = record if isinstance(record, dict) else {}
    text, tokens = record.get("text"), record.get("tokens")
    if isinstance(text, str) and tokenizer is not None:
        ids = tokenizer.encode(without_traces_of_files(text))
        if readable and not tokenizer.reads(text, ids):
            raise DataError(f"{where} {tokenizer.reads_nothing}.")
        return ids
    if isinstance(tokens, list) and all(type(token) is int for token in tokens):
        return tokens
    needed = '"text" (a string) or "tokens"' if tokenizer is not None else '"tokens"'
    raise DataError(f"{where} has no field {needed} (a list of whole numbers).")


def _always_wrapped(model: Model | CausalModel) -> bool:
    """Whether every training sequence was `[BOS] text [EOS]`; a causal model gets BOS when it scores."""
    return isinstance(model, Model) and model.first_token is not None


def _sequences(
    model: Model | CausalModel,
    source: Source,
    flag: str,
    length: int,
    limit: int | None,
    *,
    wrap: bool,
) -> np.ndarray:
    """The first sequences of a corpus, read as the model reads text: `[texts, length]` int32."""
    tokenizer, kind = model.text_tokenizer, model.facts.get("sequences", "packed")
    require(
        kind != "prompted",
        f"{flag} is for models of plain text, but this one was trained on prompts and completions, which are "
        "read from the data of its run alone: leave the flag out, with a checkpoint in its run's folder.",
    )
    sequences = Sequences(kind, tokenizer.bos_id, tokenizer.eos_id, wrap)
    ids = encode_documents(tokenizer, _documents(tokenizer, source, flag.partition("=")[0]), kind)
    # As in a preparation: the vocabulary's own normalisation may leave nothing of a text.
    packed = pack((text for text in ids if len(text)), length, sequences)
    rows = list(itertools.islice(packed, limit))
    if not rows:
        raise DataError(
            f"{flag} has less text than one sequence of {length} tokens; give more, or a smaller --length."
        )
    return np.stack(rows).astype(np.int32)


def _spread(split: Split, limit: int | None) -> np.ndarray:
    """At most `limit` sequences, spread evenly over a split."""
    count = min(limit or len(split), len(split))
    return split.gather(np.arange(count) * len(split) // count).astype(np.int32)


def _documents(tokenizer: Tokenizer, source: Source, flag: str) -> Iterator[str]:
    corpus, split, folder = source
    return documents(DataConfig(corpus.name, normalize=tokenizer.normalize), split, folder, flag)


def _held_out_corpus(subject: Subject) -> Source:
    """What --held_out names."""
    name, folder = subject.settings.held_out, subject.settings.held_out_folder
    require(
        not folder or name in CORPORA,
        f"--held_out_folder is for named corpora, and {name} is not one; leave the folder out.",
    )
    corpus = find_corpus(name, "--held_out")
    return corpus, corpus.held_out or TRAIN, as_path(folder) if folder else None
