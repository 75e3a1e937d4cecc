import pytest

from sdtt_jax.data import DataConfig, TokenizerConfig
from sdtt_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("corpus", ""),
        ("text_field", ""),
        ("detokenize", "brown"),
        ("normalize", "upper"),
        ("length", 1),
        ("length", True),
        ("wrap", 1),
        ("validation_fraction", 0.0),
        ("validation_fraction", 1.0),
        ("num_shards", 0),
        ("sequences", "document"),  # was "kind", which a config of data does not have
    ],
)
def test_a_data_field_that_cannot_work_is_named(field, value):
    with pytest.raises(ConfigError, match=rf"{field}.* {value!r}|{field}={value!r}"):
        DataConfig(**{field: value})


@pytest.mark.parametrize("names", ["p>c>d", "p>", ">c", " > ", ">"])
def test_a_text_of_instructions_has_two_names(names):
    """A third name would be of no use, and an empty one would be looked for in every row."""
    with pytest.raises(ConfigError, match=f"text_field of two names.*go together.* not '{names}'"):
        DataConfig(text_field=names, sequences="prompted")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "wordpiece"),
        ("model_type", "word"),
        ("vocab_size", 3),
        ("vocab_size", 65_536),
        ("byte_fallback", 1),
        ("max_sentences", 0),
    ],
)
def test_a_tokenizer_field_that_cannot_work_is_named(field, value):
    with pytest.raises(ConfigError, match=rf"{field}.* {value!r}|{field}={value!r}"):
        TokenizerConfig(**{field: value})


def test_wrapping_needs_room_for_a_token_between_bos_and_eos():
    with pytest.raises(ConfigError, match="length must be at least 3, not 2"):
        DataConfig(length=2, wrap=True)


def test_characters_do_not_fall_back_to_bytes():
    with pytest.raises(ConfigError, match="byte_fallback"):
        TokenizerConfig(model_type="char", byte_fallback=True)
