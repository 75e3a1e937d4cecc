"""Published corpora, read from a local folder, from data that TFDS prepared, or from the hub."""

import contextlib
import dataclasses
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdtt_jax.config import require
from sdtt_jax.data import reading
from sdtt_jax.data.files import CODECS, SUFFIXES, Found, find_files
from sdtt_jax.data.opening import HUB
from sdtt_jax.errors import ConfigError, DataError, first_line
from sdtt_jax.paths import as_path, home

# The variable names a folder that holds corpora by name: $SDTT_JAX_CORPORA/openwebtext/train/….
FOLDER_VARIABLE = "SDTT_JAX_CORPORA"
TFDS_INFO = "dataset_info.json"
# Each call reads the index of a whole shard: 0.4 ms of CPU time at 300,000 records.
_RECORDS_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class PublishedCorpus:
    """Where a published corpus is and how its files are read."""

    repo: str  # data set of the model hub, "owner/name"
    # Glob pattern of a split's files in the repository, with `{split}` for its name; or a pattern by split.
    files: str | Mapping[str, str]
    text_field: str = "text"  # the field or column that holds the text
    revision: str = "main"  # branch of the repository
    # Its name in TFDS, with its config, and the feature that holds the text; None if TFDS lacks it.
    tfds: tuple[str, str] | None = None
    # Whether the hub's copy is read over the network (of Parquet, only the text's column) and never stored;
    # otherwise it is downloaded once into the hub's cache.
    streamed: bool = False
    subset: tuple[str, str] | None = None  # as in `reading.Fields`

    @property
    def fields(self) -> reading.Fields:
        """Where a row's text is."""
        return reading.Fields(self.text_field, self.tfds[1] if self.tfds else "", self.subset)

    def parts(self, name: str, split: str, folder: Path | None) -> list[reading.Part]:
        """A split, cut into parts.

        They are read from the first of these that is there: `folder`, if given; the folder `name` in
        $SDTT_JAX_CORPORA; the newest version that TFDS has prepared; the hub's copy. A folder holds
        `SPLIT.parquet`, `.jsonl` or `.txt`, or files of these kinds in `SPLIT/`, or is what TFDS has
        prepared.

        Raises:
          ConfigError: `folder` lacks the split (the message says which file to put there), or has it twice.
          DataError: the text is in none of these places.
        """
        place = self._place(name, folder)
        if place is None:
            return reading.plan(self._from_hub(name, split), split)
        found = self.found(name, split, folder)
        if found is not None:
            return reading.plan(found.files, split)
        assert self.tfds is not None
        data = _tfds_builder(str(place), split, self.tfds[1]).info.splits[split]
        size = max(1, data.num_bytes // max(1, data.num_examples))
        sizes = itertools.repeat(size, data.num_examples)
        return reading.gather(reading.ranges(reading.TFDS, str(place), sizes), split)

    def found(self, name: str, split: str, folder: Path | None) -> Found | None:
        """The files of a split in the folder that is read; None if it is read by TFDS or from the hub.

        Arguments and errors are those of `parts`.
        """
        place = self._place(name, folder)
        if place is None or (self.tfds is not None and (place / TFDS_INFO).is_file()):
            return None
        candidates = [*(f"{split}{suffix}" for suffix in SUFFIXES), split]
        lines = (".jsonl", ".json", ".txt")
        compressed = [f"{split}{kind}{codec}" for kind in lines for codec in CODECS]
        entries = sorted(place.glob(f"{split}*")) if place.is_dir() else []
        lowered = [(split + entry.name.removeprefix(split).lower(), entry) for entry in entries]
        wanted = candidates + compressed
        sources = [entry for each in wanted for name, entry in lowered if name == each]
        if not sources:
            raise ConfigError(
                f"{place} holds no {split} split of {name}: put one of {', '.join(candidates)} there, with "
                f"the text in {self.text_field!r}."
            )
        names = ", ".join(source.name for source in sources)
        require(
            len(sources) == 1,
            f"{place} holds the {split} split of {name} several times ({names}); leave one of them there.",
        )
        return find_files(sources[0])

    def _place(self, name: str, folder: Path | None) -> Path | None:
        """The folder that is read; None for the hub's copy."""
        shared = os.environ.get(FOLDER_VARIABLE)
        if folder is None and shared and (as_path(shared) / name).is_dir():
            folder = as_path(shared) / name
        return self._prepared() if folder is None else folder

    def _prepared(self) -> Path | None:
        """The newest version that TFDS has prepared on this machine."""
        if self.tfds is None:
            return None
        here = home()
        root = os.environ.get("TFDS_DATA_DIR") or (here and here / "tensorflow_datasets")
        if not root:
            return None
        root = as_path(root)
        found = [info.parent for info in (root / self.tfds[0]).glob(f"*.*.*/{TFDS_INFO}")]
        # Others are unfinished (`incomplete.X_1.0.0`), or copies.
        versions = [folder for folder in found if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)]
        return max(versions, key=lambda folder: [*map(int, folder.name.split("."))], default=None)

    def _from_hub(self, name: str, split: str) -> list[str]:
        """The hub's files of a split: addresses if they are streamed, else paths of the downloaded files."""
        # Imported here because it takes 0.3 s, and all commands import the table of corpora.
        import huggingface_hub

        pattern = self.files if isinstance(self.files, str) else self.files[split]
        pattern = pattern.format(split=split)
        elsewhere = (
            f"Put its files into a folder {name}/{split}/, and set ${FOLDER_VARIABLE} to the folder above "
            f"{name}"
        )
        if self.tfds is not None:
            elsewhere += f"; or prepare {self.tfds[0]} with TFDS, file_format='array_record'"
        try:
            if self.streamed:
                # By commit, because a branch may move between two runs of a preparation.
                found = huggingface_hub.dataset_info(self.repo, revision=self.revision)
                root = f"datasets/{self.repo}@{found.sha}"
                files = [
                    HUB + path for path in huggingface_hub.HfFileSystem().glob(f"{root}/{pattern}")
                ]
            else:
                folder = huggingface_hub.snapshot_download(
                    self.repo,
                    repo_type="dataset",
                    revision=self.revision,
                    allow_patterns=[pattern],
                )
                files = [str(path) for path in as_path(folder).glob(pattern)]
        except Exception as error:  # of the hub's library, or of its HTTP client, whichever that is
            raise DataError(
                f"{name} is not on this machine and the hub cannot be reached ({first_line(error)}). Where "
                f"there is a network, download {pattern} of the data set {self.repo}, revision "
                f"{self.revision}. {elsewhere}."
            ) from None
        if not files:
            raise DataError(
                f"{name}: {self.repo} at {self.revision} has no {pattern}. {elsewhere}."
            )
        return sorted(files)


@contextlib.contextmanager
def _named_failure(folder: str) -> Iterator[None]:
    """Makes an error of TFDS or ArrayRecord, of whatever type, a `DataError` that names the folder."""
    try:
        yield
    except Exception as error:
        raise DataError(
            f"{folder} cannot be read by TFDS ({first_line(error)}); prepare the set again."
        ) from None


def _tfds_builder(folder: str, split: str, feature: str) -> Any:
    import tensorflow_datasets as tfds

    with _named_failure(folder):
        builder = tfds.builder_from_directory(folder)
    if split not in builder.info.splits or feature not in (builder.info.features or {}):
        raise DataError(
            f"{folder} has no split {split!r} with a feature {feature!r}; prepare the set again."
        )
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise DataError(
            f"{folder} holds {builder.info.file_format}, which only TensorFlow reads; prepare it with "
            "file_format='array_record'."
        )
    return builder


def read_tfds(
    piece: reading.Piece, split: str, fields: reading.Fields
) -> Iterator[reading.ReadRow]:
    """The rows of a piece of data that TFDS prepared."""
    builder = _tfds_builder(piece.path, split, fields.feature)
    with _named_failure(piece.path):
        source = builder.as_data_source(split)
    for start in range(piece.start, piece.stop, _RECORDS_AT_ONCE):
        indices = range(start, min(start + _RECORDS_AT_ONCE, piece.stop))
        with _named_failure(piece.path):
            rows = source.__getitems__(indices)
        for index, row in zip(indices, rows, strict=True):
            raw = row[fields.feature]
            try:
                yield raw.decode("utf-8") if isinstance(raw, bytes) else str(raw)
            except UnicodeDecodeError as error:
                yield reading.BadInputError(
                    "invalid UTF-8", f"{piece.path}, record {index} of {split}: {error}."
                )
