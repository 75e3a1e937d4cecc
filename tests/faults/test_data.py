"""Damaged, missing and unfinished data. Oracle: the data as they were prepared."""

import json
import shutil
import threading

import pytest

from sdtt_jax.data import open_split, prepare
from sdtt_jax.data.ingest import untracked
from sdtt_jax.errors import DataError
from tests.data.conftest import chapters, prepared, write_jsonl  # noqa: F401 - fixtures
from tests.training import tiny, toy


@pytest.fixture
def copied(prepared, tmp_path):  # noqa: F811
    """A copy of the prepared data, to damage."""
    return shutil.copytree(prepared.data, tmp_path / "data")


def shards(directory):
    return sorted(directory.glob("packed_tokens/**/*train*array_record*"))


def flip(where):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[int(where * len(content))] ^= 4
        path.write_bytes(content)

    return damage


DAMAGE = {
    "missing": (lambda path: path.unlink(), "is missing"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-1000]), r"has \d+ bytes instead of"),
    "empty": (lambda path: path.write_bytes(b""), "has 0 bytes instead of"),
    "a bit flipped at 0.1": (flip(0.1), "is damaged"),
    "a bit flipped at 0.3": (flip(0.3), "is damaged"),
    "a bit flipped at 0.5": (flip(0.5), "is damaged"),
}


@pytest.mark.fault(
    row=25,
    fault="a shard is missing, cut, empty, or a bit of it flips",
    promise="an error before the first step that names the file (Grain would go on with fewer)",
)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("number", [0, 2])
def test_row_25_a_damaged_shard(copied, damage, number):
    harm, message = DAMAGE[damage]
    victim = shards(copied)[number]
    harm(victim)
    with pytest.raises(DataError, match=f"{victim.name} {message}"):
        open_split(copied, "train")


@pytest.mark.fault(
    row=25,
    fault="a shard too many",
    promise="an error before the first step that names the file",
)
def test_row_25_a_shard_too_many(copied):
    """Half a shard that a worker left behind when it was killed is no shard, and is passed over."""
    first = shards(copied)[0]
    shutil.copy(first, first.with_name(f".{first.name}.9510d211"))
    open_split(copied, "train")
    extra = first.with_name(first.name.replace("00000-of", "00007-of"))
    shutil.copy(first, extra)
    with pytest.raises(
        DataError, match=f"{extra.name} is not one of the shards that info.json lists"
    ):
        open_split(copied, "train")


@pytest.mark.fault(
    row=25,
    fault="shards hold another number of records than was written",
    promise="an error before the first step that says both numbers",
)
def test_row_25_another_number_of_records(copied):
    path = copied / "info.json"
    content = json.loads(path.read_text())
    content["shards"][0]["records"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"train.array_record-\S+ holds \d+ records instead of \d+"):
        open_split(copied, "train")


class Killed(BaseException):
    """Interrupts as a signal or the end of the process would."""


def prepare_again(prepared, folder, track=untracked):  # noqa: F811
    return prepare(
        prepared.data_config,
        prepared.tokenizer_config,
        folder / "data",
        folder / "tokenizer",
        track,
    )


@pytest.mark.fault(
    row=25,
    fault="stopped while the data are being prepared",
    promise="nothing that looks finished is left; the same command goes on from there",
)
@pytest.mark.parametrize(
    ("moment", "next_pass"),
    [
        ("reading the corpus", "reading the corpus"),
        ("learning the vocabulary", "reading the corpus (1 of 1 parts are done)"),
        ("tokenising", "tokenising"),
        ("writing the shards", "tokenising (1 of 1 parts are done)"),
    ],
)
def test_row_25_stopped_while_preparing(prepared, tmp_path, moment, next_pass):  # noqa: F811
    passes = []

    def stop(items, title, *_):
        passes.append(title)
        if title == moment:
            raise Killed
        return items

    with pytest.raises(Killed):
        prepare_again(prepared, tmp_path, stop)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == (set() if moment == "reading the corpus" else {".data.partial", ".data.work"})
    moment, before = "", len(passes)
    assert prepare_again(prepared, tmp_path, stop) == prepared.info
    assert passes[before] == next_pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "tokenizer"]


@pytest.mark.fault(
    row=25,
    fault="killed while the data are being prepared, or between their two renames",
    promise="the rest is cleared away; the same command gives the same data, by fingerprint",
)
def test_row_25_killed_between_the_renames(prepared, tmp_path):  # noqa: F811
    shutil.copytree(prepared.tokenizer, tmp_path / "tokenizer")
    (tmp_path / ".data.partial").mkdir()
    (tmp_path / ".data.partial" / "rest").write_text("of a killed run")
    assert prepare_again(prepared, tmp_path) == prepared.info
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "tokenizer"]


@pytest.mark.fault(
    row=26,
    fault="the thread that makes batches fails (there are no data processes to kill)",
    promise="its own error, within two steps; no thread is left; the same command goes on",
)
def test_row_26_a_data_thread_that_fails(tmp_path):
    unbroken = tiny.run(tmp_path / "unbroken")
    taken = []

    def failing(step):
        if step == 6:
            raise DataError("shard 3 is damaged; prepare the data again.")
        taken.append(step)
        return tiny.batch_at(step)

    with pytest.raises(DataError, match="shard 3 is damaged"):
        tiny.run(tmp_path / "run", failing)
    assert taken[:6] == list(range(6))
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]
    toy.assert_same(tiny.run(tmp_path / "run"), unbroken)
