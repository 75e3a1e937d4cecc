"""The tokenizer.json of a published network, and the files that name its special tokens.

Oracle: numbers by hand. Token i is the i-th letter, but for BOS, EOS and MASK.
"""

import dataclasses
import importlib.resources
import json

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file

import sdtt_jax
from sdtt_jax.data import Gpt2Tokenizer
from sdtt_jax.errors import CheckpointError, DataError
from sdtt_jax.interchange.export import export_reference
from sdtt_jax.interchange.hub import ADDED_FILES, BPE_FILES
from sdtt_jax.interchange.load import load_network
from sdtt_jax.interchange.tables.families import FAMILIES
from tests.interchange.llama_models import IDS, MASK, ROWS, repository, vocabulary


class TestTokenizers:
    """Of words: token i is the i-th letter, but for BOS, EOS and MASK."""

    WORDS = {chr(97 + i): i for i in range(17)} | {"<s>": 17, "</s>": 18, "<mask>": MASK}

    def put(self, folder, words=WORDS, **config):
        vocabulary(words).save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(config))

    def test_tokens_behind_mask_have_other_numbers_and_read_the_same(self, tmp_path):
        folder = repository(tmp_path / "m", "dream", bos_token_id=None, eos_token_id=None)
        words = {**self.WORDS, "n": 19}
        self.put(folder, words, bos_token="<s>", eos_token={"content": "</s>"})
        model = sdtt_jax.load(folder)
        tokenizer = model.tokenizer
        assert tokenizer.encode("a m o <mask>").tolist() == [0, 12, MASK, model.mask_id]
        assert (tokenizer.bos_id, tokenizer.eos_id) == (16, 17)
        assert tokenizer.decode([0, 12, 13, 18]) == "a m o n"
        assert tokenizer.vocab_size == model.config.vocab_size
        export_reference(model, tmp_path / "out")
        assert sdtt_jax.load(tmp_path / "out").tokenizer.digest == tokenizer.digest

    def test_what_was_trained_further_goes_out_with_the_published_numbers(self, tmp_path):
        """A student has no stored layout, but its tokenizer knows where MASK was."""
        folder = repository(tmp_path / "m", "dream")
        self.put(folder)
        model = sdtt_jax.load(folder, length=2048)
        facts = {name: model.facts[name] for name in ("path", "kind", "schedule")}
        export_reference(dataclasses.replace(model, facts=facts), tmp_path / "out")
        again = sdtt_jax.load(tmp_path / "out")
        assert (again.facts["mask_row"], again.config) == (MASK, model.config)
        np.testing.assert_array_equal(again.logits(IDS), model.logits(IDS))
        assert again.tokenizer.digest == model.tokenizer.digest

    def test_more_tokens_than_rows_are_those_of_another_model(self, tmp_path):
        folder = repository(tmp_path / "m", "llama")
        self.put(folder, {f"w{i}": i for i in range(ROWS + 2)})
        with pytest.raises(
            CheckpointError, match="22 tokens, but the model's embedding has only 20 rows"
        ):
            sdtt_jax.load(folder)

    def test_added_tokens_beyond_the_rows_are_left_out(self, tmp_path):
        """Of Llama-2 and others there are copies with a `<pad>` for which the embedding has no row.

        Oracle: the tokenizer without them. What needs one of them is still refused.
        """
        found = []
        for name, extra in (("with", ["<pad>", "<extra>"]), ("without", [])):
            folder = repository(tmp_path / name, "llama")
            made = vocabulary(self.WORDS)
            made.add_special_tokens(extra)
            assert made.get_vocab_size() == ROWS + len(extra)
            made.save(str(folder / "tokenizer.json"))
            found.append(sdtt_jax.load(folder).tokenizer)
        ours, plain = found
        assert ours.encode("a m <pad> b").tolist() == plain.encode("a m <pad> b").tolist()
        assert ours.vocab_size == plain.vocab_size == ROWS
        folder = tmp_path / "with"
        config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": ROWS}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=f"eos_id is token {ROWS}, .* 0 to 19"):
            sdtt_jax.load(folder)

    def test_far_more_rows_than_tokens_are_those_of_another_model(self, tmp_path):
        """An eighth and less is padding, as Qwen's and LLaDA's embeddings have it."""
        folder = repository(tmp_path / "m", "llama")
        self.put(folder, {f"w{i}": i for i in range(14)})
        with pytest.raises(CheckpointError, match=r"embedding has 20 rows, .* only 17 tokens"):
            sdtt_jax.load(folder)
        self.put(folder, {f"w{i}": i for i in range(15)})
        assert sdtt_jax.load(folder).tokenizer is not None

    def test_a_token_numbered_beyond_the_rows_is_another_models(self, tmp_path):
        """The count of tokens does not show this: their numbers may have gaps."""
        folder = repository(tmp_path / "m", "llama")
        self.put(folder, {**self.WORDS, "z": 500})
        with pytest.raises(
            CheckpointError, match="501 tokens, but the model's embedding has only 20 rows"
        ):
            sdtt_jax.load(folder)

    @pytest.mark.parametrize("token", [ROWS, -1, 10**12])
    def test_a_special_token_that_is_none_of_the_models_is_named(self, tmp_path, token):
        folder = repository(tmp_path / "m", "llama", eos_token_id=token)
        self.put(folder)
        with pytest.raises(CheckpointError, match=f"eos_id is token {token}, .* 0 to 19"):
            sdtt_jax.load(folder)

    @pytest.mark.parametrize("content", ["[]", "3", "null", '"x"'])
    def test_names_that_are_no_object_are_one_sentence(self, tmp_path, content):
        for model in ("llama", "a2d-qwen2"):
            folder = repository(tmp_path / model, model, mask_token_id=None, eos_token_id=None)
            self.put(folder)
            (folder / "tokenizer_config.json").write_text(content)
            with pytest.raises(
                CheckpointError, match=r"tokenizer_config\.json holds no JSON object"
            ):
                sdtt_jax.load(folder)

    @pytest.mark.parametrize(
        ("added", "said"),
        [
            (
                [],
                "calls MASK '<M>', which is not among the 3 tokens that it and tokenizer.json add",
            ),
            ({"3": {"content": "a"}}, "calls MASK '<M>', which is not among the 4 tokens"),
            (["<mask>"], "added_tokens_decoder does not map numbers to tokens"),
            ({"13": "<mask>"}, "added_tokens_decoder does not map numbers to tokens"),
            ({"x": {"content": "<mask>"}}, "added_tokens_decoder does not map numbers to tokens"),
        ],
        ids=str,
    )
    def test_a_mask_that_its_names_do_not_number_is_asked_for(self, tmp_path, added, said):
        folder = repository(tmp_path / "m", "a2d-qwen2", mask_token_id=None)
        self.put(folder, mask_token="<M>", added_tokens_decoder=added)
        with pytest.raises(
            CheckpointError, match=rf"tokenizer_config\.json:? {said}.*pass mask_id"
        ):
            sdtt_jax.load(folder)
        assert sdtt_jax.load(folder, mask_id=MASK).facts["mask_row"] == MASK

    @pytest.mark.parametrize(("name", "beside"), [("qwen", 12), (None, None), ("unnumbered", None)])
    def test_mask_is_what_its_tokenizer_names_before_what_is_usual(
        self, tmp_path, monkeypatch, name, beside
    ):
        """Fine-tuned with one more special token before MASK. Oracle: the file, else the family's number."""
        usual = FAMILIES["a2d-qwen3"]._replace(mask_id=MASK)
        monkeypatch.setitem(FAMILIES, "a2d-qwen3", usual)
        folder = repository(tmp_path / "m", "a2d-qwen3", mask_token_id=None)
        added = {"12": {"content": "qwen"}}
        names = {"mask_token": name, "added_tokens_decoder": added}
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
        assert load_network(folder).facts["mask_row"] == (MASK if beside is None else beside)

    @pytest.mark.parametrize("name", ["a2d-qwen2", "a2d-qwen3"])
    def test_files_of_transformers_5_number_mask_in_the_vocabulary(
        self, tmp_path, monkeypatch, name
    ):
        """They have no added_tokens_decoder. Oracle: the number of <mask> in tokenizer.json."""
        usual = FAMILIES["a2d-qwen3"]._replace(mask_id=MASK - 1)
        monkeypatch.setitem(FAMILIES, "a2d-qwen3", usual)
        folder = repository(tmp_path / "m", name, mask_token_id=None)
        self.put(folder, mask_token="<mask>", tokenizer_class="TokenizersBackend")
        assert load_network(folder).facts["mask_row"] == self.WORDS["<mask>"]
        (folder / "tokenizer.json").write_text("{}")
        with pytest.raises(CheckpointError, match=r"tokenizer.json has no list added_tokens"):
            load_network(folder)

    @pytest.mark.parametrize("which", ["bos", "eos"])
    @pytest.mark.parametrize("own", [True, False])
    def test_mask_neither_begins_nor_ends_texts(self, tmp_path, which, own):
        folder = repository(tmp_path / "m", "dream", **{f"{which}_token_id": MASK})
        if own:
            self.put(folder)
        with pytest.raises(CheckpointError, match=f"token {MASK} is both MASK and {which.upper()}"):
            load_network(folder)

    def test_mask_is_a_token_unless_the_user_says_so(self, tmp_path):
        folder = repository(tmp_path / "m", "dream")
        self.put(folder, {word: i for word, i in self.WORDS.items() if i != MASK} | {"<mask>": 19})
        with pytest.raises(CheckpointError, match=f"token {MASK} should be MASK, but tokenizer"):
            sdtt_jax.load(folder)
        assert sdtt_jax.load(folder, mask_id=MASK).tokenizer is not None

    def test_no_end_of_text_is_asked_for(self, tmp_path):
        folder = repository(tmp_path / "m", "llama", bos_token_id=None, eos_token_id=None)
        self.put(folder)
        with pytest.raises(CheckpointError, match="which token ends a text"):
            sdtt_jax.load(folder)

    def test_a_text_that_it_cannot_read_is_an_error_in_words(self, tmp_path):
        folder = repository(tmp_path / "m", "llama")
        self.put(folder, {word: i for word, i in self.WORDS.items() if word != "a"})
        with pytest.raises(DataError, match=r"cannot read a text \(.*UNK"):
            sdtt_jax.load(folder).tokenizer.encode("b zzz")

    def test_a_damaged_one_is_named(self, tmp_path):
        folder = repository(tmp_path / "m", "llama")
        (folder / "tokenizer.json").write_text('{"model": ')
        with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
            sdtt_jax.load(folder)


@pytest.mark.parametrize(
    ("field", "number", "why"),
    [
        ("eos_token_id", ROWS, f"must be one of the model's tokens, 0 to {ROWS - 1}, not {ROWS}"),
        ("bos_token_id", 2**40, "must be one of the model's tokens, 0 to .*, not 1099511627776"),
        ("eos_token_id", [-1, 2], "must be one of the model's tokens, 0 to .*, not -1"),
        (
            "bos_token_id",
            True,
            "in the model's config.json must be the number of a token, .* not True",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["llama", "dream"])
def test_a_text_ends_with_a_token_of_the_model(name, field, number, why, tmp_path):
    """Without a tokenizer, the config alone says so; the rows of its embedding are 0 to 19."""
    folder = repository(tmp_path / "m", name, **{field: number})
    with pytest.raises(CheckpointError, match=f"{field} {why}"):
        load_network(folder)


class TestGpt2sSize:
    """Networks of GPT-2's kind with as many tokens as GPT-2: their own file says which they are."""

    ROWS = 50_257

    @pytest.fixture
    def folder(self, tmp_path):
        """One layer of eight features; oracle of its tokens: the number in each word."""
        shapes = {"attn.c_attn": (8, 24), "attn.c_proj": (8, 8), "mlp.c_fc": (8, 32)}
        shapes |= {"mlp.c_proj": (32, 8)}
        named = {"wte.weight": np.zeros((self.ROWS, 8)), "wpe.weight": np.zeros((16, 8))}
        for name, shape in shapes.items():
            named |= {f"h.0.{name}.weight": np.zeros(shape), f"h.0.{name}.bias": np.zeros(shape[1])}
        for name in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
            named |= {f"{name}.weight": np.ones(8), f"{name}.bias": np.zeros(8)}
        sizes = {"vocab_size": self.ROWS, "n_positions": 16, "n_layer": 1, "n_embd": 8, "n_head": 2}
        config = {"model_type": "gpt2", **sizes, "bos_token_id": 0, "eos_token_id": 0}
        save_file(
            {n: x.astype(np.float32) for n, x in named.items()}, tmp_path / "model.safetensors"
        )
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    def put_words(self, folder):
        words = {"<s>": 0} | {f"w{i}": i for i in range(1, self.ROWS)}
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<s>"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        made.save(str(folder / "tokenizer.json"))

    def put_gpt2s(self, folder, *more, prefix=False, normalizer=None):
        """The hub's, from the vocabulary and merges that OpenAI published."""
        files = importlib.resources.files("sdtt_jax.data") / "gpt2_bpe"
        merges = (files / "vocab.bpe").read_text("utf-8").split("\n")[1:-1]
        model = tokenizers.models.BPE(
            vocab=json.loads((files / "encoder.json").read_text("utf-8")),
            merges=[tuple(line.split(" ")) for line in merges],
        )
        made = tokenizers.Tokenizer(model)
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        if normalizer is not None:
            made.normalizer = normalizer
        made.add_special_tokens(["<|endoftext|>", *more])
        made.save(str(folder / "tokenizer.json"))

    def test_its_own_words_are_not_read_as_gpt2s(self, folder):
        self.put_words(folder)
        tokenizer = sdtt_jax.load(folder).tokenizer
        assert tokenizer.encode("w5 w7").tolist() == [5, 7]
        assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 0)

    def put_files(self, folder, words, merges):
        """As in repositories that have no tokenizer.json."""
        (folder / "vocab.json").write_text(json.dumps(words))
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", "utf-8")

    def test_its_own_vocabulary_and_merges_are_not_read_as_gpt2s(self, folder):
        """As a GPT-2 of another language has them. Cuts and merges by hand: "Ġ" is the space."""
        words = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4, "Ġab": 5, "1": 6}
        padding = {f"w{i}": i for i in range(7, self.ROWS)}
        self.put_files(folder, words | padding, "a b\nĠ ab")
        tokenizer = load_network(folder).tokenizer
        assert tokenizer.encode("ab ab11 b<|endoftext|>a").tolist() == [3, 5, 6, 6, 4, 2, 0, 1]
        assert tokenizer.decode([3, 5, 0, 4, 2]) == "ab ab\n b"

    @pytest.mark.parametrize(
        ("file", "content", "ids"),
        [
            ("added_tokens.json", {"<s>": 9}, [3, 9, 1]),
            # As padding that was added to no embedding.
            ("added_tokens.json", {"<s>": ROWS, "<t>": ROWS + 1}, [3, 4, 5, 6, 1]),
            ("special_tokens_map.json", {"bos_token": "<s>"}, [3, 7, 1]),
            ("tokenizer_config.json", {"additional_special_tokens": ["<s>"]}, [3, 7, 1]),
            ("tokenizer_config.json", {"eos_token": {"content": "<s>"}}, [3, 7, 1]),
        ],
    )
    def test_what_the_files_beside_them_call_special_is_one_token(self, folder, file, content, ids):
        """As the hub's GPT2Tokenizer takes it out of a text."""
        words = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3, "<": 4, "s": 5, ">": 6}
        padding = {f"w{i}": i for i in range(10, self.ROWS)}
        rest = {"x": 9} if ids[1] == 7 else {}
        self.put_files(folder, words | padding | {"<s>": 7} | rest, "a b")
        assert load_network(folder).tokenizer.encode("ab<s>a").tolist() == [3, 4, 5, 6, 1]
        (folder / file).write_text(json.dumps(content))
        assert load_network(folder).tokenizer.encode("ab<s>a").tolist() == ids

    def test_gpt2s_vocabulary_and_merges_are_gpt2s_tokenizer(self, folder):
        files = importlib.resources.files("sdtt_jax.data") / "gpt2_bpe"
        words = json.loads((files / "encoder.json").read_text("utf-8"))
        merges = (files / "vocab.bpe").read_text("utf-8").partition("\n")[2]
        self.put_files(folder, words | {"<|endoftext|>": self.ROWS - 1}, merges)
        assert isinstance(load_network(folder).tokenizer, Gpt2Tokenizer)

    @pytest.mark.parametrize("more", [None, [], ["<|mask|>"]], ids=str)
    def test_gpt2s_own_file_or_none_is_gpt2s_tokenizer(self, folder, more):
        """Also with MASK after the vocabulary, as denoisers made of GPT-2 have it."""
        if more is not None:
            self.put_gpt2s(folder, *more)
        tokenizer = sdtt_jax.load(folder).tokenizer
        assert isinstance(tokenizer, Gpt2Tokenizer)
        assert tokenizer.encode("Hello world").tolist() == [15496, 995]  # as published

    @pytest.mark.parametrize(
        ("how", "ids"),
        [
            ({"prefix": True}, [18435, 995]),  # " Hello", " world"
            ({"normalizer": tokenizers.normalizers.Lowercase()}, [31373, 995]),  # "hello", " world"
        ],
        ids=["prefix", "lower case"],
    )
    @pytest.mark.parametrize("ends", [{}, {"bos_token_id": None, "eos_token_id": None}], ids=str)
    def test_gpt2s_vocabulary_with_other_reading_is_read_so(self, folder, how, ids, ends):
        """Oracle: GPT-2's published ids of the text that its normaliser or prefix makes."""
        self.put_gpt2s(folder, **how)
        config = json.loads((folder / "config.json").read_text()) | ends
        (folder / "config.json").write_text(json.dumps(config))
        tokenizer = load_network(folder).tokenizer
        assert tokenizer.encode("Hello world").tolist() == ids
        assert tokenizer.eos_id == (self.ROWS - 1 if ends else 0)

    @pytest.mark.parametrize("own", [True, False])
    def test_of_the_hub_its_file_is_asked_for_and_need_not_exist(self, folder, own, hub_of):
        if own:
            self.put_words(folder)
        asked = hub_of(folder)
        tokenizer = sdtt_jax.load("some/repo").tokenizer
        assert isinstance(tokenizer, Gpt2Tokenizer) is not own
        assert asked == [
            "model.safetensors",
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            *([] if own else [*BPE_FILES, *ADDED_FILES]),
        ]
