import dataclasses
import json
import os
import resource
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from sdtt_jax.data import DataConfig, Split, builders, load_tokenizer, open_split, prepare
from sdtt_jax.data.loader import Mixture, open_mixture, shuffled
from sdtt_jax.data.records import read_info
from sdtt_jax.errors import ConfigError, DataError
from tests.data.conftest import divide


@pytest.fixture(scope="module")
def train(prepared):
    return open_split(prepared.data, "train")


@pytest.fixture
def copied(prepared, tmp_path):
    """A copy of the prepared data, to damage."""
    return shutil.copytree(prepared.data, tmp_path / "data")


@pytest.mark.parametrize("length", [9, 17, 32])
def test_a_record_of_another_length_is_named(copied, length):
    """Otherwise its end would be read as a sequence, or missing tokens be made up."""
    info = json.loads((copied / "info.json").read_text())
    shard = info["shards"][1]
    rows = [np.zeros(16, np.uint16)] * shard["records"]
    rows[3] = np.zeros(length, np.uint16)
    path, prefix = copied / shard["path"], builders.record_prefix(16, np.dtype(np.uint16))
    path.unlink()
    builders.write_shard(path, prefix, rows, len(rows))
    shard["bytes"] = path.stat().st_size
    (copied / "info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=rf"{path.name} is damaged \(a record of another length"):
        open_split(copied, "train")
    split = open_split(copied, "train", cache_bytes=0)
    before = info["shards"][0]["records"]
    assert not split.gather(np.array([before, before + 2])).any()
    with pytest.raises(DataError, match="a record of another length"):
        split.gather(np.array([before + 3]))


def test_rows_are_the_documents_in_order(prepared, train, tmp_path):
    # Oracle: the train split's first document.
    first = next(divide(prepared.data_config, tmp_path)("train"))
    text = load_tokenizer(prepared.tokenizer).decode(train.gather(np.arange(20)).ravel())
    assert text == first[: 20 * 16]
    rows = train.gather(np.arange(len(train)))
    assert rows.dtype == np.int32
    assert rows.shape == (prepared.info.num_train, 16)


def test_a_batch_is_a_function_of_seed_and_step(prepared, train):
    again = open_split(prepared.data, "train")
    np.testing.assert_array_equal(train.batch(3, 17, 8), again.batch(3, 17, 8))
    assert train.batch(3, 17, 8).shape == (8, 16)
    assert train.batch(3, 17, 8).dtype == np.int32
    assert not np.array_equal(train.batch(3, 17, 8), train.batch(3, 18, 8))
    assert not np.array_equal(train.batch(3, 17, 8), train.batch(4, 17, 8))


def test_an_epoch_holds_every_sequence_once_and_each_is_another_order(train):
    size = len(train)
    batch_size = 7  # Does not divide the epoch, so that an end falls within a batch.
    steps = -(-2 * size // batch_size)
    drawn = np.concatenate([shuffled(size, 0, step, batch_size) for step in range(steps)])
    first, second = drawn[:size], drawn[size : 2 * size]
    np.testing.assert_array_equal(np.sort(first), np.arange(size))
    np.testing.assert_array_equal(np.sort(second), np.arange(size))
    assert np.mean(first == second) < 0.05


def test_the_order_has_no_trend(train):
    # Correlation of position and index under a random permutation of n has standard error
    # 1/sqrt(n-1) = 0.011 at n = 8223; four of them. Seed 0.
    order = shuffled(len(train), 0, 0, len(train))
    limit = 4 / np.sqrt(len(train) - 1)
    assert abs(np.corrcoef(order, np.arange(len(train)))[0, 1]) < limit
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < limit


def test_the_batch_size_does_not_change_the_stream(train):
    large = train.batch(0, 5, 12)
    small = np.concatenate([train.batch(0, step, 4) for step in (15, 16, 17)])
    np.testing.assert_array_equal(large, small)


def test_hosts_take_slices_of_the_same_global_batch(train):
    whole = train.batch(1, 2, 12)
    parts = [train.batch(1, 2, 12, rows=slice(start, start + 4)) for start in (0, 4, 8)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_reading_on_demand_equals_reading_from_memory(prepared, train):
    lazy = open_split(prepared.data, "train", cache_bytes=0)
    assert train.cached is not None
    assert lazy.cached is None
    np.testing.assert_array_equal(lazy.batch(0, 9, 32), train.batch(0, 9, 32))
    for split in (lazy, train):
        for nothing in ([], np.arange(0)):
            assert split.gather(nothing).shape == (0, 16)
        np.testing.assert_array_equal(split.gather(np.uint8([2, 0])), train.cached[[2, 0]])


@pytest.mark.parametrize(
    "indices",
    [np.arange(9) < 3, [0.0, 1.0], [-1], [2**40], 3, [[0, 1]], [2**70]],
    ids=["mask", "floats", "negative", "beyond", "number", "table", "huge"],
)
@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_what_is_no_list_of_sequences_is_refused(prepared, cache_bytes, indices):
    """From memory a mask was taken for sequences 1 and 0; small splits are in memory."""
    split = open_split(prepared.data, "train", cache_bytes=cache_bytes)
    with pytest.raises(
        ConfigError, match=r"indices must be \[n\] whole numbers from 0 to \d+, not"
    ):
        split.gather(indices)


def test_records_of_a_group_are_those_of_single_ones(prepared, monkeypatch, tmp_path):
    """Nine groups of a split: the sequences are the same, in any order of reading."""
    monkeypatch.setattr(builders, "MOST_GROUPS", 9)
    config = dataclasses.replace(prepared.data_config, validation_fraction=0.5)
    prepare(config, prepared.tokenizer_config, tmp_path / "data", tmp_path / "tokenizer")
    grouped, whole = (open_split(tmp_path / "data", "train", size) for size in (0, 2**30))
    np.testing.assert_array_equal(grouped.batch(0, 9, 32), whole.batch(0, 9, 32))


@pytest.fixture(scope="module")
def mixture(prepared, train):
    """Splits of 8223 and a few hundred sequences, mixed three to one."""
    return Mixture((train, open_split(prepared.data, "validation")), (3.0, 1.0))


def test_every_split_of_a_mixture_has_its_share_at_every_place(mixture):
    which, count = mixture.sources(0, 400)
    for number, share in enumerate((0.75, 0.25)):
        assert np.abs(np.cumsum(which == number) - share * np.arange(1, 401)).max() <= 1
        assert count[which == number].tolist() == list(range(int(400 * share)))


def test_more_splits_have_their_shares_to_within_a_few_sequences(train):
    weights = np.array([1, 0.07, 0.9, 3.3, 0.5])
    which, _ = Mixture((train,) * 5, tuple(weights)).sources(0, 400)
    had = np.cumsum(which[:, None] == np.arange(5), axis=0)
    due = weights / weights.sum() * np.arange(1, 401)[:, None]
    assert 1 < np.abs(had - due).max() < 3


def test_a_mixture_is_a_function_of_seed_and_step(mixture):
    """Slices and other batch sizes give the same stream; another seed gives another."""
    whole = mixture.batch(2, 3, 12)
    assert whole.shape == (12, 16)
    assert whole.dtype == np.int32
    parts = [mixture.batch(2, 3, 12, rows=slice(i, i + 4)) for i in (0, 4, 8)]
    small = [mixture.batch(2, step, 4) for step in (9, 10, 11)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(np.concatenate(small), whole)
    assert not np.array_equal(mixture.batch(3, 3, 12), whole)


def test_each_split_of_a_mixture_goes_through_its_epochs(mixture):
    """Two epochs of the smaller one: each of its sequences twice."""
    small = mixture.splits[1]
    rows = mixture.batch(0, 0, 8 * len(small))
    which, _ = mixture.sources(0, 8 * len(small))
    drawn, times = np.unique(rows[which == 1], axis=0, return_counts=True)
    known, copies = np.unique(small.gather(np.arange(len(small))), axis=0, return_counts=True)
    np.testing.assert_array_equal(drawn, known)
    np.testing.assert_array_equal(times, 2 * copies)


def test_a_mixture_of_folders_has_one_vocabulary(prepared, tmp_path):
    """Weights come from the config, `FOLDER=0.5`; the first folder has weight 1."""
    assert isinstance(open_mixture(prepared.data, {}), Split)
    others = DataConfig(mixture=(f"{prepared.data}=0.5",)).mixed()
    assert open_mixture(prepared.data, others).weights == (1.0, 0.5)
    cased = dataclasses.replace(prepared.data_config, normalize="none")
    vocabulary = dataclasses.replace(prepared.tokenizer_config, vocab_size=200)
    prepare(cased, vocabulary, tmp_path / "data", tmp_path / "tokenizer")
    with pytest.raises(DataError, match="another vocabulary"):
        open_mixture(prepared.data, {str(tmp_path / "data"): 1.0})
    home, here = Path.home(), Path.cwd()
    for one, other in (
        ("./d/", "d"),
        (f"{home}/d", "~/d"),
        (f"{here}/d", "d"),
        ("gs://d", "gs://d/"),
    ):
        with pytest.raises(ConfigError, match=f"mixture names {other} twice; add its weights up"):
            DataConfig(mixture=(f"{one}=0.5", "~/other=1", f"{other}=0.5"))
    for wrong in ("folder", "=1", "folder=0", "folder=much", "folder=inf"):
        with pytest.raises(ConfigError, match="a folder and a weight above 0"):
            DataConfig(mixture=(wrong,))
    # As `Mixture` refuses them, which otherwise only the teacher's training asks.
    for weight in ("1e-50", "1e39", "1e-320"):
        with pytest.raises(ConfigError, match=f"the weight in mixture='x={weight}' must be"):
            DataConfig(mixture=(f"x={weight}",))


@pytest.mark.parametrize("field", ["sequences", "wrap", "normalize"])
def test_a_mixture_has_one_kind_of_sequences(prepared, copied, field):
    """Half of the sequences would lack what the model's facts say of all. Older data are not wrapped."""
    path = copied / "info.json"
    content = json.loads(path.read_text())
    if field != "normalize":  # it was always stored
        del content["data"][field]
    path.write_text(json.dumps(content))
    assert len(open_mixture(prepared.data, {str(copied): 1.0}).splits) == 2
    other = {"sequences": "padded", "wrap": True, "normalize": "none"}
    content["data"][field] = other[field]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"data\.{field}.* prepare them in the same way"):
        open_mixture(prepared.data, {str(copied): 1.0})


@pytest.mark.parametrize(
    ("weights", "message"),
    [((1.0, 0.0), "weights must be positive, not 0.0"), ((1.0,), "each of 2")],
)
def test_a_mixture_that_cannot_be_is_refused(mixture, weights, message):
    with pytest.raises(ConfigError, match=message):
        Mixture(mixture.splits, weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 1), "seed must be at least 0, not -1"),
        ((0, -1, 1), "step must be at least 0, not -1"),
        ((0, 0, 0), "batch_size must be positive, not 0"),
        ((0, 0, 2.5), "batch_size must be a whole number, not 2.5"),
        ((0.5, 0, 1), "seed must be a whole number, not 0.5"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(train, arguments, message):
    with pytest.raises(ConfigError, match=message):
        train.batch(*arguments)


@pytest.mark.parametrize("content", [None, "{"], ids=["missing", "damaged"])
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_what_tfds_cannot_read_is_named(copied, name, content):
    """It was a traceback of TFDS, protobuf or JSON."""
    [path] = copied.rglob(name)
    path.unlink()
    if content is not None:
        path.write_text(content)
    message = r"packed_tokens/1\.0\.0 cannot be read by TFDS \(.*prepare the data again"
    with pytest.raises(DataError, match=message):
        open_split(copied, "train")


def test_an_info_of_which_a_config_is_no_object_is_damaged(copied, prepared):
    content = json.loads((copied / "info.json").read_text()) | {"data": None}
    (copied / "info.json").write_text(json.dumps(content))
    configs = prepared.data_config, prepared.tokenizer_config
    with pytest.raises(DataError, match=r"info\.json is damaged"):
        prepare(*configs, copied, prepared.tokenizer)


@pytest.fixture
def limit():
    """The limit of open files, lowered so that it allows one more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held, highest = [os.open(os.devnull, os.O_RDONLY)], max(map(int, os.listdir("/dev/fd")))
    while held[-1] <= highest:  # there may be gaps between the numbers of open files
        held.append(os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1] + 1, hard))
    os.close(held.pop())
    yield resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for file in held:
        os.close(file)


def test_every_shard_of_a_split_is_open(prepared, train, limit):
    """256 shards are more than macOS allows by default. Oracle: three shards are three files more."""
    assert len(open_split(prepared.data, "train", 0)) == len(train)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == limit + 3


@pytest.mark.usefixtures("train", "limit")
def test_too_many_open_files_are_no_damage(prepared, monkeypatch):
    """The message was that a shard "holds 0 records instead of 251; prepare the data again"."""
    with monkeypatch.context() as patch:
        patch.setattr(resource, "setrlimit", mock.Mock(side_effect=ValueError))
        message = "cannot be read: Too many open files; raise `ulimit -n`"
        with pytest.raises(DataError, match=message):
            open_split(prepared.data, "train")


def test_what_is_not_there_is_named(copied):
    with pytest.raises(DataError, match="no split 'test'"):
        open_split(copied, "test")
    (copied / "info.json").write_text("{")
    with pytest.raises(DataError, match=r"info\.json is damaged"):
        open_split(copied, "train")
    (copied / "info.json").unlink()
    with pytest.raises(DataError, match=r"info\.json is missing"):
        open_split(copied, "train")


def test_the_data_of_a_run_that_is_named_in_their_place_are_named(copied):
    run = copied.rename(copied.with_name("data")).parent
    with pytest.raises(DataError, match=f"{run} holds no prepared data; give {run / 'data'}"):
        read_info(run)
