"""The evaluation command. Oracles: golden values of GPT-2, the runner's judge, one device, files."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.cli.compare import compare
from experiments.configs.smoke import smoke
from experiments.evaluate import update_report
from experiments.settings import config_dict
from experiments.stages.mirror import own_data
from experiments.stages.runner import open_run, run_stages
from sdtt_jax.data import TokenizerConfig, train_tokenizer
from sdtt_jax.errors import CheckpointError, ConfigError, DataError
from sdtt_jax.evaluation.judge import in_judge_tokens, score_texts
from sdtt_jax.evaluation.record import Record, own_path
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import load_subject
from sdtt_jax.evaluation.suites import SUITES, cloze, generation, given
from sdtt_jax.evaluation.texts import held_out
from sdtt_jax.keys import purpose_key
from sdtt_jax.model import batches
from sdtt_jax.networks.gpt2 import GPT2Config, GPT2Network
from sdtt_jax.parallel.environment import virtual_devices
from tests.experiments.processes import call
from tests.sharing import once
from tests.worlds import as_causal, noisy_params

TEXT = "the quick brown fox jumps over the lazy dog and runs far away from here\n"
SETTINGS = Settings(
    batch_size=4,
    num_steps=(2, 4),
    num_texts=10,
    num_prompts=3,
    prompt_tokens=6,
    continuation_tokens=10,
    continuations=2,
    held_out_texts=9,
    estimators=("antithetic", "low-variance"),
    num_maskings=3,
    latency_batches=(1, 3),
    repeats=2,
)
MEASURED = ("generation", "likelihood", "latency")
FLAGS = (
    "--batch_size=4",
    "--num_steps=4",
    "--num_texts=10",
    "--held_out_texts=9",
    "--estimators=antithetic,low-variance",
    "--num_maskings=3",
)


def _make(folder):
    """A run as training leaves it, but with random parameters."""
    corpus = folder / "corpus.txt"
    corpus.write_text(TEXT * 200)
    config = smoke()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, corpus=str(corpus)))
    root = folder / "run"
    with open_run(config_dict(config), root) as run:
        run_stages(run, ["data"])
        for path, network, facts in (
            (run.workdir.teacher, run.denoiser, {"stage": "teacher"}),
            (run.workdir.round(1), run.denoiser, {"stage": "distill", "round": 1}),
            (run.workdir.judge, run.judge, {"stage": "judge"}),
        ):
            run.deliver(path, network, noisy_params(network, 0), **facts)
    return str(root)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return once(tmp_path_factory, "untrained_run", _make)[1]


@pytest.fixture(scope="module")
def evaluated(root, tmp_path_factory):
    """Three suites of round 1, in this process."""
    path = tmp_path_factory.mktemp("evaluated") / "round.json"
    subject = load_subject(SETTINGS, root, "own", "own", None)
    subject = dataclasses.replace(subject, data=own_data(subject.model))
    said = []
    record = Record(path, subject.model.identity, said.append)
    for name in MEASURED:
        SUITES[name].run(subject, record)
    return path, subject, record, said


def test_one_file_says_what_was_measured_of_which_model_and_with_what(evaluated):
    path, subject, _, _ = evaluated
    assert subject.judge is subject.baseline is not None  # the run's, which is read once
    content = json.loads(path.read_text())
    assert content["model"]["digest"] == subject.model.identity["digest"]
    assert content["model"]["facts"] == {"stage": "distill", "round": 1}
    assert content["environment"]["packages"]["jax"] == jax.__version__
    expected = {
        f"generation/{setup}/{name}"
        for setup in ("unconditional", "prompted")
        for name in ("steps_0002", "steps_0004", "autoregressive", "real_text")
    }
    expected |= {f"likelihood/{n}" for n in ("antithetic", "low-variance", "autoregressive")}
    expected |= {
        f"latency/{n}_batch_{b:03d}"
        for n in ("steps_0002", "steps_0004", "autoregressive", "baseline")
        for b in (1, 3)
    }
    assert set(content["items"]) == expected
    for item in content["items"].values():
        assert item["inputs"]


def test_perplexity_is_never_without_entropy(evaluated):
    _, _, record, said = evaluated
    for name, item in record.items.items():
        if name.startswith("generation"):
            assert item["gen_ppl_low"] <= item["gen_ppl"] <= item["gen_ppl_high"]
            assert item["entropy_low"] <= item["entropy"] <= item["entropy_high"]
            assert item["gen_ppl_median"] > 1
    spoken = [line for line in said if "perplexity" in line and "entropy" not in line]
    assert all("at most" in line or "bits per token" in line for line in spoken)


def test_texts_are_whole_and_judged_as_the_runner_judges(evaluated):
    """Batches of 4 for 10 texts; the run's own judge in the runner's way."""
    path, subject, record, _ = evaluated
    lines = (
        path.parent / "round.json.parts" / "generation_unconditional_steps_0004.jsonl"
    ).read_text()
    records = [json.loads(line) for line in lines.splitlines()]
    tokens = np.array([record["tokens"] for record in records], np.int32)
    assert tokens.shape == (10, 32)
    assert tokens.max() < subject.model.mask_id
    nll = np.asarray(subject.judge.score(tokens))
    item = record.items["generation/unconditional/steps_0004"]
    assert item["gen_ppl"] == pytest.approx(np.exp(nll.mean()), rel=1e-5)
    assert item["scored_tokens"] == 320
    assert not item["retokenised"]
    assert [record["nll_per_token"] for record in records] == pytest.approx(nll.tolist(), rel=1e-4)


def test_continuations_keep_their_prompts_and_are_compared_with_the_real_ones(evaluated):
    path, subject, record, _ = evaluated
    for name in ("steps_0002", "autoregressive"):
        file = path.parent / "round.json.parts" / f"generation_prompted_{name}.jsonl"
        tokens = np.array([json.loads(line)["tokens"] for line in file.read_text().splitlines()])
        assert tokens.shape == (6, 16)
        setup = generation.setups(subject)[1]
        np.testing.assert_array_equal(tokens[:, :6], setup.prompts)
        np.testing.assert_array_equal(setup.prompts[0], setup.prompts[1])
        item = record.items[f"generation/prompted/{name}"]
        assert 0 <= item["mauve"] <= 1
        assert item["scored_tokens"] == 60, "the prompt's tokens do not count"


def test_likelihoods_are_bounds_with_their_intervals(evaluated):
    _, _, record, _ = evaluated
    for name in ("antithetic", "low-variance"):
        item = record.items[f"likelihood/{name}"]
        assert item["perplexity_low"] < item["perplexity"] < item["perplexity_high"]
        assert item["bits_per_token"] == pytest.approx(item["nelbo"] / np.log(2))
        assert item["masking_error"] > 0
        assert (item["num_texts"], item["length"]) == (9, 32)


def test_latency_counts_only_the_texts_that_were_asked_for(evaluated):
    _, _, record, _ = evaluated
    for batch in (1, 3):
        item = record.items[f"latency/steps_0002_batch_{batch:03d}"]
        assert item["tokens_per_second"] == pytest.approx(batch * 32 / item["seconds"])
        assert len(item["seconds_each"]) == 2
        causal = record.items[f"latency/autoregressive_batch_{batch:03d}"]
        assert causal["nfe"] == 32
        assert causal["compile_s"] > 0


def test_nothing_finished_is_computed_again(evaluated, monkeypatch):
    path, subject, _, _ = evaluated
    before = path.read_bytes()

    def refuse(*_, **__):
        raise AssertionError("computed again")

    for name in ("npz", "write_bytes"):
        monkeypatch.setattr(f"sdtt_jax.evaluation.record.{name}", refuse)
    monkeypatch.setattr("sdtt_jax.evaluation.suites.latency._fresh", refuse)
    monkeypatch.setattr(generation, "in_judge_tokens", refuse)
    record = Record(path, subject.model.identity)
    for name in MEASURED:
        SUITES[name].run(subject, record)
    assert path.read_bytes() == before


def test_an_item_that_was_cut_off_goes_on_after_its_last_batch(evaluated, tmp_path, monkeypatch):
    """Stopped in the third of three batches; oracle: the file of texts and scores of the unbroken call."""
    path, subject, _, _ = evaluated
    settings = dataclasses.replace(SETTINGS, num_steps=(4,), num_prompts=0)
    subject = dataclasses.replace(subject, settings=settings, baseline=None)
    calls = []
    whole = batches._run

    def fragile(function, params, index, *rest):
        calls.append(index)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return whole(function, params, index, *rest)

    monkeypatch.setattr(batches, "_run", fragile)
    target = tmp_path / "cut.json"
    with pytest.raises(KeyboardInterrupt):
        generation.suite(subject, Record(target, subject.model.identity))
    record = Record(target, subject.model.identity)
    assert "generation/unconditional/steps_0004" not in record.items
    generation.suite(subject, record)
    real_text_judged, written, judged = [0, 1, 2], [0, 1, 2, 2], [0, 1, 2]
    assert calls == [*real_text_judged, *written, *judged]
    name = "generation_unconditional_steps_0004.jsonl"
    expected = (path.parent / "round.json.parts" / name).read_text()
    assert (tmp_path / "cut.json.parts" / name).read_text() == expected


def test_one_key_gives_one_text(evaluated, root, tmp_path):
    """In the evaluation, the library and the command line; the notebook calls the library."""
    path, subject, _, _ = evaluated
    model = subject.model
    evaluated_texts = path.parent / "round.json.parts" / "generation_unconditional_steps_0004.jsonl"
    key = purpose_key(SETTINGS.seed, "evaluate.unconditional", 4)
    tokens = model.sample(key, 10, 4, batch_size=SETTINGS.batch_size)
    np.testing.assert_array_equal(tokens_of(evaluated_texts), tokens)
    flags = ("--num_samples=6", "--num_steps=4", "--batch_size=4", "--seed=3", "--mesh=1,1,1")
    done = call("sample", f"--checkpoint={root}", *flags, f"--output={tmp_path / 'texts.jsonl'}")
    assert done.status == 0, done.stderr
    written = tokens_of(tmp_path / "texts.jsonl")
    np.testing.assert_array_equal(written, model.sample(jax.random.key(3), 6, 4, batch_size=4))


def tokens_of(path):
    return [json.loads(line)["tokens"] for line in path.read_text().splitlines()]


def test_texts_that_end_early_are_counted_and_cut_if_asked_for(evaluated):
    """EOS is in the middle of the second of two texts. Oracle: the judge's own scores of the pieces."""
    _, subject, _, _ = evaluated
    tokenizer, judge = subject.model.tokenizer, subject.judge
    tokens = np.tile(tokenizer.encode("the quick brown fox jumps")[:20], (2, 1))
    tokens[1, 9] = tokenizer.eos_id
    whole, cut = (in_judge_tokens(judge, tokens, tokenizer, ends) for ends in ("keep", "cut"))
    assert whole.facts["texts_that_end_early"] == cut.facts["texts_that_end_early"] == 1
    scores, short = (score_texts(judge, r.seen, batch_size=4) for r in (whole, cut))
    np.testing.assert_array_equal(scores.scored, [20, 20])
    np.testing.assert_array_equal(short.scored, [20, 10])
    alone = np.asarray(judge.score(tokens[1:, :10]))
    assert short.per_token[1] == pytest.approx(alone[0], rel=1e-5)


def test_arrays_hold_what_was_scored_by_the_texts_numbers(evaluated, tmp_path):
    """Of three texts the second is empty and the third is cut at EOS. Oracle: the result's perplexity."""
    subject = evaluated[1]
    tokens = np.array(subject.model.tokenizer.encode("the quick brown fox jumps")[:20])
    rows = tokens, tokens[:0], np.insert(tokens, 9, subject.model.tokenizer.eos_id)
    texts, arrays = tmp_path / "texts.jsonl", tmp_path / "arrays.npz"
    texts.write_text("\n".join(json.dumps({"tokens": row.tolist()}) for row in rows))
    cut = dataclasses.replace(SETTINGS, texts=str(texts), arrays=str(arrays), ends="cut")
    record = Record(tmp_path / "given.json", subject.judge.identity)
    given.suite(dataclasses.replace(subject, settings=cut), record)
    with np.load(arrays) as file:
        assert (file["text"].tolist(), file["scored"].sum(axis=1).tolist()) == ([0, 2], [20, 10])
        perplexity = np.exp(file["nll"][file["scored"]].mean(dtype=np.float64))
    assert record.items["judge/texts"]["gen_ppl"] == pytest.approx(perplexity, rel=1e-5)


def test_a_judge_with_another_tokenizer_reads_text(evaluated, tmp_path):
    """A judge with GPT-2's tokens reads the texts of a model of characters."""
    _, subject, _, _ = evaluated
    gpt2 = _gpt2_judge()
    settings = dataclasses.replace(SETTINGS, num_steps=(4,), num_prompts=2)
    subject = dataclasses.replace(subject, settings=settings, judge=gpt2, baseline=None)
    record = Record(tmp_path / "gpt2.json", subject.model.identity)
    generation.suite(subject, record)
    item = record.items["generation/unconditional/steps_0004"]
    assert item["retokenised"]
    file = tmp_path / "gpt2.json.parts" / "generation_unconditional_steps_0004.jsonl"
    texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    counts = [len(gpt2.tokenizer.encode(text)) for text in texts]
    assert item["scored_tokens"] == pytest.approx(sum(counts), rel=0.1)
    assert record.items["generation/prompted/steps_0004"]["mauve"] is not None


def test_last_words_and_choices_by_the_model_and_by_the_causal_one(evaluated, tmp_path):
    """Texts and answers are 24 letters long, for which one program scores them all."""
    _, subject, _, _ = evaluated
    rows = {
        "lambada": [{"text": "the quick brown fox runs"}, {"text": "and now the lazy dog ran"}],
        "piqa": [{"goal": "run", "sol1": "fast", "sol2": "away", "label": 0}],
    }
    said = []
    record = Record(tmp_path / "words.json", subject.model.identity, said.append)
    for task, lines in rows.items():
        path = tmp_path / f"{task}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        settings = dataclasses.replace(SETTINGS, task=task, task_file=str(path))
        cloze.suite(dataclasses.replace(subject, settings=settings), record)
        for name in ("bound", "autoregressive"):
            item = record.items[f"lambada/{task}_{name}"]
            assert item["num_texts"] == len(lines)
            assert 0 <= item["accuracy"] <= 1
            assert ("perplexity" in item) == (task == "lambada")
            assert ("accuracy_normalised" in item) == (task == "piqa")
    assert len(said) == 4


def test_a_named_set_is_read_from_its_folder(evaluated, tmp_path):
    _, subject, _, _ = evaluated
    (tmp_path / "validation.jsonl").write_text(json.dumps({"text": TEXT * 5}) + "\n")
    settings = dataclasses.replace(
        SETTINGS, held_out="wikitext2", held_out_folder=str(tmp_path), held_out_texts=4
    )
    rows = held_out(dataclasses.replace(subject, settings=settings))
    assert rows.shape == (4, 32)
    assert subject.model.tokenizer.decode(rows[0]) == TEXT[:32]
    settings = dataclasses.replace(settings, held_out="nowhere.txt")
    with pytest.raises(ConfigError, match="named corpora"):
        held_out(dataclasses.replace(subject, settings=settings))


def test_held_out_text_that_is_nowhere_is_named_by_its_flag(evaluated):
    """Not by the field of the data config that it becomes."""
    subject = dataclasses.replace(
        evaluated[1], settings=dataclasses.replace(SETTINGS, held_out="wikitext9")
    )
    with pytest.raises(ConfigError, match=r"--held_out: wikitext9 does not exist; .* 'wikitext2'"):
        held_out(subject)


def _gpt2_judge():
    sizes = {"length": 64, "num_layers": 1, "embed_dim": 8, "num_heads": 2}
    network = GPT2Network(GPT2Config(vocab_size=50_257, **sizes))
    tokenizer = train_tokenizer(TokenizerConfig(kind="gpt2"), [])
    return as_causal(network, noisy_params(network, 0), tokenizer)


def test_results_go_into_the_run_and_its_report(root, evaluated):
    _, subject, _, _ = evaluated
    path = own_path(subject.model)
    assert str(path) == f"{root}/evaluations/round_01.json"
    update_report(path)
    assert not (path.parent.parent / "report.html").exists(), "a run without a report gets none"


def test_a_comparison_lays_results_side_by_side(evaluated, tmp_path, capsys):
    path, _, _, _ = evaluated
    compare([str(path)], str(tmp_path / "side"))
    text = (tmp_path / "side" / "comparison.md").read_text()
    printed = capsys.readouterr().out
    for title in ("Generated texts", "Continued prompts", "Likelihood", "Latency"):
        assert f"## {title}" in text
        assert title in printed
    for batch in (1, 3):
        picture = tmp_path / "side" / f"race_batch_{batch:03d}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(DataError, match="not a result"):
        compare([str(other)], None)


def test_models_that_do_not_fit_are_named(root):
    with pytest.raises(CheckpointError, match="a judge is causal"):
        load_subject(SETTINGS, root, root, "none", None)
    with pytest.raises(ConfigError, match="length=64 exceeds"):
        load_subject(dataclasses.replace(SETTINGS, length=64), root, "none", "none", None)
    with pytest.raises(ConfigError, match="--checkpoint is missing"):
        load_subject(SETTINGS, None, "none", "none", None)


@pytest.mark.slow
@pytest.mark.multidevice
def test_a_mesh_gives_the_figures_of_one_device(root, evaluated, tmp_path, monkeypatch):
    """Four virtual devices, 2 × 1 × 2; 10 texts and 9 held-out ones in batches of 4; the whole command."""
    _, _, expected, _ = evaluated
    for name, value in virtual_devices(4).items():
        monkeypatch.setenv(name, value)
    output = tmp_path / "mesh.json"
    what = ("--suite=generation,likelihood", "--mesh=2,1,2", *FLAGS)
    done = call("evaluate", f"--checkpoint={root}", *what, f"--output={output}")
    assert done.status == 0, done.stderr
    content = json.loads(output.read_text())
    assert content["environment"]["num_devices"] == 4
    for name, item in content["items"].items():
        for field in ("gen_ppl", "entropy", "nfe", "perplexity", "self_bleu"):
            if field in item["result"]:
                assert item["result"][field] == pytest.approx(
                    expected.items[name][field], rel=1e-3
                ), (name, field)
