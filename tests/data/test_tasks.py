"""The tasks of a preparation. Oracles: tokens joined in plain Python; the same run with enough disk space."""

import resource
import shutil
import tracemalloc

import numpy as np
import pytest
import tokenizers

from sdtt_jax.data import DataConfig, TokenizerConfig, load_tokenizer, open_split, prepare
from sdtt_jax.data.corpora import find_corpus, recipe
from sdtt_jax.data.division import DOCUMENT, Rule, digest
from sdtt_jax.data.reading import plan
from sdtt_jax.data.tasks import ReadPart, Store, split_stream
from sdtt_jax.data.tokenizer import HubTokenizer, Special, save_tokenizer
from sdtt_jax.errors import DataError


def test_any_stretch_of_a_split_is_read_from_the_parts(tmp_path):
    rng = np.random.default_rng(0)
    store = Store(str(tmp_path), "uint16")
    expected, ends, token = [], [], 0
    for number in range(6):
        lengths, sides = rng.integers(0, 5, size=9), rng.integers(0, 3, size=9).astype(np.uint8)
        if number == 3:
            sides[:] = 2  # No document of this part is in either split.
        index = np.zeros(9, DOCUMENT)
        index["tokens"] = lengths
        tokens = np.arange(token, token + lengths.sum() + 9, dtype=np.uint16)
        token += len(tokens)
        for document, side in zip(
            np.split(tokens, np.cumsum(lengths + 1)[:-1]), sides, strict=True
        ):
            expected += document.tolist() if side == 1 else []
        ends.append(len(expected))
        store.path(number, ".tokens").write_bytes(tokens.tobytes())
        store.path(number, ".sides").write_bytes(sides.tobytes())
        with store.path(number, ".npy").open("wb") as file:
            np.save(file, index)
    for start in range(len(expected)):
        for stop in (start + 1, start + 7, len(expected)):
            found = list(split_stream(store, 1, tuple(ends), start, stop))
            assert np.concatenate(found).tolist() == expected[start:stop]


def test_each_preparation_reads_with_its_own_vocabulary(write_jsonl, tmp_path):
    """Oracle: the letters of the text. The second preparation of a process in the same folder used to be
    encoded with the first one's vocabulary."""
    data, tokenizer = tmp_path / "data", tmp_path / "tokenizer"
    for letters in ("abcdefgh", "zyxwvutsrq"):
        shutil.rmtree(data, ignore_errors=True)
        shutil.rmtree(tokenizer, ignore_errors=True)
        corpus = DataConfig(
            str(write_jsonl([f"{letters} " * (1 + i) for i in range(20)])), length=8
        )
        info = prepare(corpus, TokenizerConfig(model_type="char"), data, tokenizer)
        text = "".join(map(load_tokenizer(tokenizer).decode, open_split(data, "train").cached))
        assert info.num_unknown == 0
        assert set(text) <= set(f"{letters} \n")


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_the_index_is_that_of_the_texts_without_faults(write_jsonl, tmp_path, kind):
    """Of a batch of texts, those that spell MASK are skipped, and those of which the vocabulary's own
    normalisation leaves nothing. Oracle: a part that never held them."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "</s>": 2}))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.normalizer = tokenizers.normalizers.Replace("\u200b", "")
    words.add_special_tokens(["</s>", "<|mask|>"])
    config, special = TokenizerConfig(kind="hub"), Special(4, 2, 2, 3)
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    save_tokenizer(HubTokenizer(config, "none", words.to_str().encode(), special), folder)
    texts = ["a b", "a <|mask|>", "b", "<|mask|>", "a a a", "\u200b"]

    def read(name, texts, skip_bad):
        path = write_jsonl(texts)
        config = DataConfig(str(path), skip_bad=skip_bad, sequences=kind, length=4)
        store = Store(str(tmp_path / name), "uint16")
        [part] = plan([path], "train")
        how = recipe(config, find_corpus(str(path)))
        ReadPart(0, part, how, Rule("own"), store, str(folder)).run()
        fields = ["digest", "characters", "tokens"]
        return store.record(0), store.documents(0)[fields], store.path(0, ".tokens").read_bytes()

    found, expected = read("some", texts, 2), read("all", texts[:5:2], 0)
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[2] == expected[2]
    assert found[0]["counts"] == {"rows": 6, "bad": 2, "bad: MASK in a text": 2, "empty": 1}
    assert "documents.jsonl: The text '<|mask|>'" in found[0]["bad"]["MASK in a text"][1]
    with pytest.raises(DataError, match=r"spells MASK, token 3, .* number 2, but data\.skip_bad"):
        read("one", texts, 1)


def test_the_index_of_many_short_texts_takes_little_memory(write_jsonl, tmp_path):
    """A part of a million lines took 200 MB for it. Oracle: two copies of 21 bytes a text, and the texts."""
    texts = [f"line {number}" for number in range(8_000)]
    path = write_jsonl(texts)
    [part] = plan([path], "train")
    store = Store(str(tmp_path / "index"), "")
    how = recipe(DataConfig(str(path)), find_corpus(str(path)))
    tracemalloc.start()
    ReadPart(0, part, how, Rule("own"), store, "").run()
    assert tracemalloc.get_traced_memory()[1] < 2 * 21 * len(texts) + 2**18
    tracemalloc.stop()
    expected = [(digest(text), row, len(text), 0, 0) for row, text in enumerate(texts)]
    assert store.documents(0).tolist() == expected


@pytest.mark.parametrize("limit", [3_000, 20_000, 70_000])
def test_a_full_disk_is_named_and_leaves_nothing_half_written(
    chapters, write_jsonl, tmp_path, limit
):
    """No file may grow beyond the limit: the tokens, the index, a shard (padded to 64 kB) do not fit."""
    config = DataConfig(str(write_jsonl(chapters)), length=16, num_shards=4)

    def run(folder):
        return prepare(config, TokenizerConfig(kind="gpt2"), folder / "data", folder / "tokenizer")

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match=r"\.data\.(work|partial)/"):
            run(tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # Neither a finished folder nor temporary files of the tasks are left.
    assert not (tmp_path / "full" / "data").exists()
    assert not list((tmp_path / "full").glob("*/*/.*.*"))
    assert run(tmp_path / "full") == run(tmp_path / "roomy")
    shards = [
        sorted((tmp_path / name / "data").rglob("*.array_record-*")) for name in ("full", "roomy")
    ]
    assert len(shards[0]) == 8
    for full, roomy in zip(*shards, strict=True):
        assert full.read_bytes() == roomy.read_bytes()
