"""`sdtt_jax.load`: what a run delivered comes back as something to sample from and to score with."""

import copy
import dataclasses
import itertools
import shutil
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdtt_jax
from sdtt_jax.data import train_tokenizer
from sdtt_jax.diffusion.nelbo import nelbo
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.errors import CheckpointError, ConfigError
from sdtt_jax.interchange.stablehlo import exported_sampler
from sdtt_jax.model.masked import _take_step
from tests.model.runs import TEXTS


def test_a_run_means_its_last_round_and_any_part_can_be_named(run, model):
    assert model.facts["stage"] == "rounds/01"
    assert sdtt_jax.load(run / "teacher").facts["stage"] == "teacher"
    assert sdtt_jax.load(run / "rounds" / "01" / "final").facts["stage"] == "rounds/01"


def test_its_folder_is_where_it_was_loaded_from(run, tmp_path, monkeypatch):
    """Also from another working directory, in which something else may have the same path."""
    for root in (tmp_path / "one", tmp_path / "other"):
        shutil.copytree(run, root)
        (root / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "one")
    model = sdtt_jax.load("teacher")
    monkeypatch.chdir(tmp_path / "other")
    variant = dataclasses.replace(model, params={})
    assert model.folder == variant.folder == tmp_path / "one" / "teacher" / "final"
    assert model.run_folder == variant.run_folder == tmp_path / "one"
    assert model.facts["path"] == "teacher/final"


def test_a_model_is_shown_in_one_line(run, model):
    shown = repr(model)
    assert shown.startswith(f"<Model {run}/rounds/01/final: ")
    assert "\n" not in shown
    assert (
        f" {model.num_parameters:,} parameters, vocabulary of {model.config.vocab_size}, length 12>"
        in shown
    )


def test_a_mesh_that_is_none_is_refused(run):
    with pytest.raises(
        ConfigError, match=r"mesh must be a jax\.sharding\.Mesh with .* not 4; make_mesh"
    ):
        sdtt_jax.load(run, mesh=4)


def test_a_dtype_may_be_given_by_its_name_or_itself(run):
    for dtype in ("bfloat16", jnp.bfloat16, jnp.dtype("bfloat16")):
        assert sdtt_jax.load(run, compute_dtype=dtype).config.compute_dtype == "bfloat16"
    with pytest.raises(ConfigError, match="compute_dtype='float16' is unknown"):
        sdtt_jax.load(run, compute_dtype=jnp.float16)
    with pytest.raises(ConfigError, match=r"load has no argument dtype; there are .*compute_dtype"):
        sdtt_jax.load(run, dtype="bfloat16")


def test_logits_have_mask_and_no_padding(model):
    tokens = np.zeros((2, 12), np.int32)
    assert model.logits(tokens).shape == (2, 12, model.tokenizer.vocab_size + 1)
    assert model.logits(tokens).dtype == jnp.float32


def test_each_text_may_have_its_own_noise(model):
    network = dataclasses.replace(
        model.denoiser, config=dataclasses.replace(model.config, time_conditioned=True)
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: np.asarray(x) + rng.normal(0, 0.1, x.shape).astype(np.float32), model.params
    )
    timed = dataclasses.replace(model, denoiser=network, params=params)
    x_t, sigmas = np.full((2, 12), model.mask_id, np.int32), (0.5, 3.0)
    together = np.asarray(timed.logits(x_t, np.float32(sigmas)))
    for row, sigma in enumerate(sigmas):
        alone = np.asarray(timed.logits(x_t, sigma))
        np.testing.assert_allclose(together[row], alone[row], atol=1e-5)
    assert abs(together[0] - together[1]).max() > 0.01


def test_log_probs_are_subs(model):
    mask = model.denoiser.mask_id
    x_t = np.array([[3, mask, 4] + [mask] * 9, [mask] * 12], np.int32)
    log_probs = np.asarray(model.log_probs(x_t))
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1.0, rtol=1e-5)
    assert np.all(log_probs[..., mask] == -np.inf)
    assert log_probs[0, 0, 3] == 0.0
    assert np.isneginf(log_probs[0, 0]).sum() == log_probs.shape[-1] - 1


def test_it_loads_where_the_working_directory_was_removed(run, tmp_path, monkeypatch):
    """From an absolute path, it was a FileNotFoundError without a name. Oracle: the folder."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert sdtt_jax.load(run / "teacher").folder == run / "teacher" / "final"


@pytest.mark.parametrize("kind", ["documents", "padded", "prompted"])
def test_logits_read_each_text_of_a_row_as_in_training(model, kind):
    """Oracle: the same text in a row of its own; rotations know only distances, hence 1e-5."""
    bos, eos = model.ends
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(x.dtype), model.params)
    packed = dataclasses.replace(model, params=params)
    arranged = dataclasses.replace(packed, facts=model.facts | {"sequences": kind})
    first, second = [5, bos, 6, 7, model.mask_id, eos], [8, 9, 4, model.mask_id, 5, 6]
    row = np.int32([first + (second if kind == "documents" else [eos] * 6)])
    for part in (slice(0, 6), slice(6, 12))[: 1 + (kind == "documents")]:
        together, alone = arranged.logits(row)[:, part], arranged.logits(row[:, part])
        np.testing.assert_allclose(together, alone, atol=1e-5)
        np.testing.assert_allclose(alone, packed.logits(row[:, part]), atol=1e-5)
        assert np.abs(packed.logits(row)[:, part] - alone).max() > 0.01
        np.testing.assert_allclose(
            arranged.log_probs(row)[:, part], arranged.log_probs(row[:, part]), atol=1e-5
        )


def test_samples_keep_the_prompt_and_repeat_with_the_key(model):
    key = jax.random.key(3)
    texts = np.asarray(model.sample(key, 2, num_steps=4, prompt="in the"))
    assert texts.shape == (2, 12)
    assert all(model.tokenizer.decode(row).startswith("in the") for row in texts)
    np.testing.assert_array_equal(texts, model.sample(key, 2, num_steps=4, prompt="in the"))


def test_a_prompt_can_guide_and_must_then_be_there(model):
    """Two network calls for each one; this random network hardly sees a prompt, hence the scale."""
    key, config = jax.random.key(0), SamplerConfig(4, mode="first-hitting", guidance=1e4)
    x_init = model.prior(2, "ab")
    state = model.denoise(key, x_init, config)
    assert int(state.nfe) == 8
    sampled = model.sample(jax.random.key(0), 2, 4, "ab", mode="first-hitting", guidance=1e4)
    plain = model.sample(jax.random.key(0), 2, 4, "ab", mode="first-hitting")
    assert (np.asarray(sampled) != np.asarray(plain)).any()
    for nothing in (
        lambda: model.sample(key, 2, 4, guidance=1e4),
        lambda: model.denoise(key, model.prior(2), config),
        lambda: next(model.states(key, model.prior(2), config)),
    ):
        with pytest.raises(ConfigError, match="needs given text; give a prompt"):
            nothing()


def test_samples_come_in_batches_of_any_size(model):
    """Five texts, two at a time: all of them come, and no two batches are alike."""
    texts = np.asarray(model.sample(jax.random.key(1), 5, num_steps=4, batch_size=2))
    assert texts.shape == (5, model.config.length)
    assert len({tuple(row) for row in texts.tolist()}) == 5
    with pytest.raises(ConfigError, match="batch_size"):
        model.sample(jax.random.key(1), 5, num_steps=4, batch_size=0)


def test_each_sample_may_have_its_own_prompt_or_gaps(model):
    key = jax.random.key(4)
    prompts = ["in", "the heavens", ""]
    texts = model.sample(key, 3, 4, prompts, batch_size=2)
    decoded = [model.tokenizer.decode(row) for row in np.asarray(texts)]
    assert [text.startswith(p) for text, p in zip(decoded, prompts, strict=True)] == [True] * 3
    filled = np.asarray(model.sample(key, 2, 4, infill=["[2]the[3]god", "he[1]d"]))
    ids = model.tokenizer.encode("the")
    np.testing.assert_array_equal(filled[0, 2:5], ids)
    assert filled.shape == (2, 12)


def test_the_first_batch_does_not_depend_on_the_prompts_of_the_next(model):
    """Prompts of other lengths leave the compiled program and the keys as they are."""
    key = jax.random.key(4)
    both = model.sample(key, 4, 4, ["in the", "heavens", "god", ""], batch_size=2)
    first = model.sample(key, 2, 4, ["in the", "heavens"])
    np.testing.assert_array_equal(np.asarray(both)[:2], first)


@pytest.mark.parametrize(
    "options",
    [{}, {"mode": "first-hitting"}, {"final_denoise": False}, {"guidance": 1e4}],
    ids=str,
)
def test_states_end_where_denoise_does(model, options):
    """Oracle: the compiled generation. Every step only fills masks."""
    key, x_init = jax.random.key(6), model.prior(2, "in ")
    config = SamplerConfig(num_steps=4, **options)
    compiled = _take_step._cache_size()
    states = jax.device_get(list(model.states(key, x_init, config)))
    assert _take_step._cache_size() <= compiled + 1, "one program for all steps"
    whole = jax.device_get(model.denoise(key, x_init, config))
    assert len(states) == 6
    np.testing.assert_array_equal(states[0].x, x_init)
    np.testing.assert_array_equal(states[-1].x, whole.x)
    assert states[-1].nfe == whole.nfe
    for before, after in itertools.pairwise(states):
        known = before.x != model.mask_id
        np.testing.assert_array_equal(after.x[known], before.x[known])


def test_texts_may_stop_at_their_end(model):
    """Oracle: the same texts, cut by hand."""
    key, eos = jax.random.key(7), model.tokenizer.eos_id
    # Two at a time, for the program of the tests above.
    whole, stopped = (
        np.array(model.sample(key, 64, 4, batch_size=2, stop_at_eos=stop)) for stop in (False, True)
    )
    cut = 0
    for full, short in zip(whole, stopped, strict=True):
        special = np.isin(full, [eos, model.tokenizer.bos_id])
        ends = [i for i in np.flatnonzero(full == eos) if not special[:i].all()]
        if ends:
            cut += ends[0] < model.config.length - 1
            full[ends[0] :] = eos
        np.testing.assert_array_equal(short, full)
    assert cut > 0


def test_score_is_the_mean_of_one_sample_bounds(model):
    """Oracle: `nelbo` with the same keys."""
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12) % model.mask_id
    key = jax.random.key(5)
    bound = jax.jit(nelbo, static_argnames="diffusion")
    expected = [
        bound(model.diffusion, model.params, tokens, jax.random.fold_in(key, i)) for i in range(3)
    ]
    np.testing.assert_allclose(
        model.score(tokens, key, 3), np.mean(expected, axis=0), rtol=1e-5, atol=1e-6
    )


def test_a_loaded_model_helps_another_one_s_decoder(run, model):
    """Oracle: the helper in the form that the decoder takes."""
    config, teacher = SamplerConfig(4, mode="staged"), sdtt_jax.load(run / "teacher")
    one, other = (
        model.denoise(jax.random.key(0), model.prior(2), config, helper).x
        for helper in (teacher, teacher.as_helper)
    )
    np.testing.assert_array_equal(one, other)
    with pytest.raises(ConfigError, match=r"helper must be a model, .* not 'runs/x'"):
        model.sample(jax.random.key(0), 2, 4, mode="staged", helper="runs/x")
    for mode in ("grid", "first-hitting", "confidence"):  # with a shared program and with their own
        with pytest.raises(ConfigError, match=f"mode={mode} uses no other model; leave the helper"):
            model.sample(jax.random.key(0), 2, 4, mode=mode, helper=teacher)
    single = dataclasses.replace(teacher, facts=teacher.facts | {"sequences": "padded"})
    with pytest.raises(ConfigError, match="trained with sequences='padded'; decoders need one"):
        model.sample(jax.random.key(0), 2, 4, mode="staged", helper=single)


def test_a_helper_with_other_texts_for_the_same_tokens_is_refused(run, model):
    """Oracle: two vocabularies of one size by construction, whose letters are shifted by one."""
    config, teacher = SamplerConfig(4, mode="staged"), sdtt_jax.load(run / "teacher")
    letters = string.ascii_lowercase
    shifted = str.maketrans(letters, letters[1:] + letters[:1])
    texts = [text.translate(shifted) for text in TEXTS]
    other = train_tokenizer(model.tokenizer.config, texts, "text8")
    assert other.vocab_size == model.tokenizer.vocab_size
    stranger = dataclasses.replace(teacher, tokenizer=other)
    said = (
        f"The helper {teacher.facts['path']} has another tokenizer .*give a helper that was trained"
    )
    for write in (
        lambda: model.sample(jax.random.key(0), 2, 4, mode="staged", helper=stranger),
        lambda: model.denoise(jax.random.key(0), model.prior(2), config, stranger),
        lambda: model.states(jax.random.key(0), model.prior(2), config, stranger),
        lambda: exported_sampler(model, config, 2, stranger),
    ):
        with pytest.raises(ConfigError, match=said):
            write()
    # Equal tokens, though another file says them, and a helper that knows only tokens.
    renamed = copy.copy(model.tokenizer)
    renamed.digest = other.digest
    right = model.denoise(jax.random.key(0), model.prior(2), config, teacher).x
    for tokenizer in (renamed, None):
        helper = dataclasses.replace(teacher, tokenizer=tokenizer)
        same = model.denoise(jax.random.key(0), model.prior(2), config, helper).x
        np.testing.assert_array_equal(same, right)


def test_texts_that_are_longer_than_the_model_s_are_refused(model):
    """It was not trained on such positions: a bound over them would be meaningless."""
    tokens, key = np.zeros((2, 13), np.int32), jax.random.key(0)
    for call in (
        lambda: model.score(tokens, key),
        lambda: model.logits(tokens),
        lambda: model.log_probs(tokens),
        lambda: model.denoise(key, tokens, SamplerConfig(4)),
        lambda: model.batches(key, tokens, SamplerConfig(4)),
    ):
        with pytest.raises(ConfigError, match=r"texts have 13 positions, but .* has 12"):
            call()


def test_a_prompt_that_is_too_long_is_refused(model):
    with pytest.raises(ConfigError, match="prompt has 13 tokens"):
        model.sample(jax.random.key(0), 1, num_steps=2, prompt="in the beginn")


def test_what_is_not_there_is_named(run, tmp_path):
    with pytest.raises(CheckpointError, match="There is no checkpoint at"):
        sdtt_jax.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"at .*/empt \(did you mean 'empty'\?\)"):
        sdtt_jax.load(tmp_path / "empt")
    with pytest.raises(CheckpointError, match="holds no finished model"):
        sdtt_jax.load(tmp_path / "empty")
    moved = tmp_path / "moved" / "final"
    moved.parent.mkdir()
    (run / "teacher" / "final").rename(moved)
    try:
        with pytest.raises(CheckpointError, match="no tokenizer folder above"):
            sdtt_jax.load(moved.parent)
    finally:
        moved.rename(run / "teacher" / "final")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temprature": 0.5}, "sample has no field 'temprature'; did you mean 'temperature'"),
        (
            {"temperature": jax.device_put(np.float32(0.5))},
            r"temperature must lie in \[0, inf\), not Array",
        ),
        ({"temperature": 10**400}, r"temperature must lie in \[0, inf\), not 1000"),
        ({"temperature": 10**5000}, "inf\\), not a number of thousands of digits"),
        ({"prompt": np.array("a")}, "prompt must be a text or a list of texts, not array"),
        ({"num_steps": jax.device_put(np.int32(4))}, "num_steps must be a whole number, not Array"),
        (
            {"num_samples": jax.device_put(np.int32(2))},
            r"give a plain number, such as num_samples\.item\(\)",
        ),
        ({"stop_at_eos": "no"}, "stop_at_eos must be True or False, not 'no'"),
        ({"final_denoise": "no"}, "final_denoise must be True or False, not 'no'"),
        ({"num_steps": 10**9}, r"num_steps must lie in \[1, 1000000\]"),
        ({"key": 0}, "key must be one jax.random.key"),
        ({"prompt": 5}, "prompt must be a text or a list of texts, not 5"),
        ({"prompt": [1, 2]}, "prompt must be a text or a list of texts, not 1"),
        ({"prompt": b"in"}, "prompt must be a text or a list of texts, not b'in'"),
        ({"infill": {"in", "the"}}, "infill must be a text or a list of texts, not {"),
    ],
)
def test_an_argument_of_another_kind_is_named(model, options, named):
    with pytest.raises(ConfigError, match=named):
        model.sample(**{"key": jax.random.key(0), "num_samples": 2, "num_steps": 4} | options)


@pytest.mark.parametrize("transform", [jax.jit, lambda f: lambda key: jax.vmap(f)(key[None])])
def test_sample_cannot_be_traced_and_says_what_can(model, transform):
    key, config = jax.random.key(0), SamplerConfig(4)
    with pytest.raises(ConfigError, match=r"cannot be traced by jit, vmap or grad; .* denoise"):
        transform(lambda key: model.sample(key, 2, 4))(key)
    x = np.asarray(transform(lambda key: model.denoise(key, model.prior(2), config).x)(key))
    np.testing.assert_array_equal(x.reshape(2, -1), model.denoise(key, model.prior(2), config).x)


def test_parameters_may_come_from_a_mesh_of_one_device_with_other_axes(model):
    """As a training within `jax.set_mesh` leaves them. Oracle: the same parameters without a mesh."""
    with jax.set_mesh(jax.make_mesh((1,), ("x",))):
        trained = jax.jit(lambda params: jax.tree.map(jnp.copy, params))(model.params)
    own, key = dataclasses.replace(model, params=trained), jax.random.key(0)
    assert own.mesh is None
    np.testing.assert_array_equal(own.sample(key, 2, 4), model.sample(key, 2, 4))
    *_, last = own.states(key, own.prior(2), SamplerConfig(4))
    np.testing.assert_array_equal(last.x, model.denoise(key, model.prior(2), SamplerConfig(4)).x)


def test_methods_transfer_nothing_by_accident(model):
    """`jax_transfer_guard` stopped all of them. Oracle: JAX's guard."""
    key, tokens = jax.random.key(0), np.zeros((2, 12), np.int32)
    for warm in (True, False):
        with jax.transfer_guard("allow" if warm else "disallow"):
            model.log_probs(tokens, sigma=0.5)
            model.score(tokens, key, num_samples=2)
            model.sample(key, 2, 4, "in", temperature=0.5)
            model.denoise(key, model.prior(2), SamplerConfig(2))
            list(model.states(key, model.prior(2, "in"), SamplerConfig(4, guidance=1.0)))


@pytest.mark.parametrize("transform", [jax.jit, lambda f: lambda x: jax.vmap(f)(x[None])[0]])
def test_a_model_on_a_mesh_may_be_traced_and_called_within_another_mesh(run, model, transform):
    """Oracle: the model without a mesh."""
    placed = sdtt_jax.load(run, mesh=sdtt_jax.make_mesh(sdtt_jax.MeshConfig()))
    tokens = model.prior(2)
    np.testing.assert_allclose(transform(placed.logits)(tokens), model.logits(tokens), rtol=1e-5)
    key = jax.random.key(0)
    with jax.set_mesh(jax.make_mesh((1,), ("x",))):
        *_, last = placed.states(key, tokens, SamplerConfig(4))
        scores, _ = placed.score(last.x, key), placed.log_probs(tokens)
    np.testing.assert_allclose(scores, model.score(last.x, key), rtol=1e-5)
