import shutil

import numpy as np
import pytest

from sdtt_jax.data import load_tokenizer, open_split
from sdtt_jax.data.ingest import divide
from sdtt_jax.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def train(prepared):
    return open_split(prepared.data, "train")


@pytest.fixture
def copied(prepared, tmp_path):
    """A copy of the prepared data, to damage."""
    return shutil.copytree(prepared.data, tmp_path / "data")


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
    drawn = np.concatenate([train.indices(0, step, batch_size) for step in range(steps)])
    first, second = drawn[:size], drawn[size : 2 * size]
    np.testing.assert_array_equal(np.sort(first), np.arange(size))
    np.testing.assert_array_equal(np.sort(second), np.arange(size))
    assert np.mean(first == second) < 0.05


def test_the_order_has_no_trend(train):
    # Correlation of position and index under a random permutation of n has standard error
    # 1/sqrt(n-1) = 0.011 at n = 8223; four of them. Seed 0.
    order = train.indices(0, 0, len(train))
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
    assert lazy.gather(np.arange(0)).shape == (0, 16)
    with pytest.raises(IndexError):
        lazy.gather(np.array([len(lazy)]))


@pytest.mark.parametrize("arguments", [(-1, 0, 1), (0, -1, 1), (0, 0, 0)])
def test_a_batch_that_cannot_be_is_refused(train, arguments):
    with pytest.raises(ConfigError, match="batch_size >= 1"):
        train.batch(*arguments)


def test_what_is_not_there_is_named(copied):
    with pytest.raises(DataError, match="no split 'test'"):
        open_split(copied, "test")
    (copied / "info.json").write_text("{")
    with pytest.raises(DataError, match=r"info\.json is damaged"):
        open_split(copied, "train")
    (copied / "info.json").unlink()
    with pytest.raises(DataError, match=r"info\.json is missing"):
        open_split(copied, "train")
