"""A run whose directory is in a bucket, which is that of tests/buckets.py."""

import gzip
import json
import types

import gcsfs
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.stages import mirror
from experiments.stages.coupled import open_pool
from experiments.stages.runner import open_run
from experiments.stages.workdir import final, is_delivered
from sdtt_jax import paths
from sdtt_jax.checkpoints.store import load_params, save_params
from sdtt_jax.data import DataConfig, TokenizerConfig, ingest, open_split, prepare, reading
from sdtt_jax.errors import CheckpointError, ConfigError, DataError
from sdtt_jax.interchange.found import finished
from sdtt_jax.training.metrics import MetricsWriter, read_metrics
from tests.data.conftest import chapters  # noqa: F401 - a fixture
from tests.experiments.processes import SMOKE
from tests.experiments.small import TEXT, small
from tests.forking import Finished, run_module
from tests.worlds import noisy_params

pytestmark = [
    # Warnings of gcsfs and its dependencies about each other.
    pytest.mark.filterwarnings("ignore:::google"),
    pytest.mark.filterwarnings("ignore:::gcsfs"),
]


def test_files_are_written_whole_and_read_back(bucket):
    path = bucket / "folder" / "file.json"
    paths.write_text(path, "first")
    paths.write_text(path, "sécond")
    assert path.read_text(encoding="utf-8") == "sécond"


def test_metrics_go_on_where_they_were(bucket):
    """Lines of an earlier writer are kept up to the step at which this one starts."""
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        tags = {"stage": "teacher", "round": 0}
        with MetricsWriter(bucket / "metrics", tags, start) as writer:
            for step in steps:
                writer.write(step, {"loss": float(10 * start + step)})
    found = read_metrics(bucket / "metrics" / "metrics.jsonl")
    assert [(m["step"], m["loss"]) for m in found] == [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0)]


def test_metrics_that_were_kept_before_a_save_survive_a_kill(bucket):
    """A killed process closes nothing; the next goes on after the save of step 2."""
    tags = {"stage": "teacher", "round": 0}
    killed = MetricsWriter(bucket / "kept", tags)
    for step in (1, 2, 3):
        killed.write(step, {"loss": float(step)})
        if step == 2:
            killed.keep()
    with MetricsWriter(bucket / "kept", tags, 2) as writer:
        writer.write(3, {"loss": 3.0})
    found = read_metrics(bucket / "kept" / "metrics.jsonl")
    assert [m["step"] for m in found] == [1, 2, 3]


def test_folders_are_copied_there_and_back(bucket, tmp_path):
    files = {"info.json": b"{}", "a/b.bin": bytes(range(256)), "c.txt": b""}
    for name, content in files.items():
        path = tmp_path / "here" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    mirror.upload(tmp_path / "here", bucket / "copy", "info.json")
    mirror.download(bucket / "copy", tmp_path / "there", "info.json")
    found = {
        str(p.relative_to(tmp_path / "there")): p.read_bytes()
        for p in (tmp_path / "there").rglob("*")
        if p.is_file()
    }
    assert found == files


def test_a_folder_that_was_made_by_hand_is_empty(bucket, tmp_path, monkeypatch):
    """Google's console and gcsfuse make an empty object `folder/`, which its own listing has again: a run was
    refused because "made is not empty", and its data could not be copied. Oracle: the same run on a disk."""
    monkeypatch.setenv("SDTT_JAX_CACHE", str(tmp_path / "cache"))
    config, system = small(tmp_path), gcsfs.GCSFileSystem()
    text = (tmp_path / "corpus.txt").read_bytes()
    system.pipe({"bucket/made/": b"", "bucket/text/": b"", "bucket/text/a.txt": text})
    config.data.corpus = "gs://bucket/text"
    with open_run(config, bucket / "made") as run:
        made = run.info
    with open_run(config, tmp_path / "run") as run:
        assert made == run.info
    assert made.files == "1 of 1 files"
    system.pipe("bucket/made/data/", b"")
    mirror.download(bucket / "made" / "data", tmp_path / "there", "info.json")
    assert open_split(tmp_path / "there", "train")


def test_a_download_that_was_cut_short_is_made_anew(bucket, tmp_path):
    (bucket / "whole").mkdir(parents=True, exist_ok=True)
    for name in ("info.json", "data.bin"):
        (bucket / "whole" / name).write_bytes(b"x")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "data.bin").write_bytes(b"half")
    mirror.download(bucket / "whole", tmp_path / "there", "info.json")
    assert (tmp_path / "there" / "data.bin").read_bytes() == b"x"


def test_data_that_were_prepared_again_are_copied_again(bucket, tmp_path):
    """A host with an old copy would train on other sequences than one without."""
    (bucket / "again").mkdir(parents=True, exist_ok=True)
    for content in (b"old", b"new"):
        for name in ("info.json", "data.bin"):
            (bucket / "again" / name).write_bytes(content)
        mirror.download(bucket / "again", tmp_path / "there", "info.json")
        assert (tmp_path / "there" / "data.bin").read_bytes() == content


def test_a_new_run_in_the_place_of_one_that_was_removed_prepares_its_own_data(
    bucket, tmp_path, monkeypatch
):
    """This host still has the other's data. Oracle: the second text has more characters."""
    monkeypatch.setenv("SDTT_JAX_CACHE", str(tmp_path / "cache"))
    config, lengths = small(tmp_path), []
    for text in (TEXT, TEXT.replace("fox", "elephant")):
        (tmp_path / "corpus.txt").write_text(text * 200)
        with open_run(config, bucket / "removed") as run:
            lengths.append(run.info.num_characters)
        paths.remove_tree(bucket / "removed")
    assert lengths[1] - lengths[0] == 200 * (len("elephant") - len("fox"))


def test_prepared_data_in_a_bucket_are_inspected_and_mixed_in_from_there(
    server, bucket, tmp_path, monkeypatch
):
    """By hosts that did not prepare them. Oracle: the data that were prepared."""
    monkeypatch.setenv("SDTT_JAX_CACHE", str(tmp_path / "first"))
    config = small(tmp_path)
    with open_run(config, bucket / "prepared") as run:
        found = run.info
    cache = {"SDTT_JAX_CACHE": str(tmp_path / "second")}
    options = ("inspect", "--workdir=gs://bucket/prepared", f"--output={tmp_path / 'found.json'}")
    done = run_module("experiments.data", options, server | cache)
    assert done.status == 0, done.stderr
    inspected = json.loads((tmp_path / "found.json").read_text())
    assert inspected["info"]["fingerprint"] == found.fingerprint
    assert inspected["digests"] == "equal"

    config.data.mixture = ("gs://bucket/prepared/data=1.0",)
    with open_run(config, tmp_path / "mixed") as run:
        assert run.info.fingerprint == found.fingerprint
        assert [len(split) for split in run.train_split.splits] == [found.num_train] * 2
    with pytest.raises(DataError, match=r"cannot be read in its bucket; copy"):
        open_split(bucket / "prepared" / "data", "train")


def test_a_model_is_measured_on_the_data_of_its_run_on_any_host(bucket, tmp_path, monkeypatch):
    """One host has none of them, the other those of an earlier run of the same name."""
    model = types.SimpleNamespace(run_folder=bucket / "own")
    assert mirror.own_data(model) is None
    (bucket / "own" / "data").mkdir(parents=True, exist_ok=True)
    for content, hosts in ((b"old", "a"), (b"new", "ab")):
        for name in ("shard.bin", "info.json"):
            (bucket / "own" / "data" / name).write_bytes(content)
        for host in hosts:
            monkeypatch.setenv("SDTT_JAX_CACHE", str(tmp_path / host))
            assert (mirror.own_data(model) / "shard.bin").read_bytes() == content


def test_what_a_killed_run_left_half_written_is_not_delivered(bucket):
    """Orbax writes in place there, and commits with a file; it reads nothing without it.

    Oracle: Orbax, which writes the folder, refuses it as a kill just before the commit leaves it, and writes
    and reads it anew.
    """
    stage, params = bucket / "killed" / "teacher", {"w": jnp.arange(6.0)}
    assert not is_delivered(stage)
    save_params(final(stage), params, {"stage": "teacher"})
    assert is_delivered(stage)
    assert finished(stage) == final(stage)
    (final(stage) / "commit_success.txt").unlink()
    with pytest.raises(CheckpointError, match="are damaged"):
        load_params(final(stage))
    assert not is_delivered(stage)
    assert finished(stage) is None
    save_params(final(stage), params, {"stage": "teacher"})
    assert is_delivered(stage)
    assert load_params(final(stage))[1] == {"stage": "teacher"}


def test_trajectories_that_a_killed_run_left_half_written_are_made_again(
    bucket, tmp_path, monkeypatch
):
    """Oracle: the trajectories that were made first, from the same teacher and seed."""
    monkeypatch.setenv("SDTT_JAX_CACHE", str(tmp_path / "cache"))
    config = small(tmp_path)
    config.distillers, config.coupled.num_trajectories = ("coupled",), 8
    with open_run(config, bucket / "pooled") as run:
        teacher = noisy_params(run.denoiser, 0)
        first = open_pool(run, 1, teacher)
        (run.workdir.round(1, "coupled") / "pool" / "commit_success.txt").unlink()
        again = open_pool(run, 1, teacher)
        batches = [pool.batch(1, 0, 8)["tokens"] for pool in (first, again)]
    np.testing.assert_array_equal(*batches)


def test_an_unknown_kind_of_path_is_an_error_that_names_those_there_are():
    with pytest.raises(ConfigError, match=r"ftp:// is not known.*gs://"):
        paths.as_path("ftp://somewhere/run")


def test_a_missing_library_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"gcsfs.*pip install -e '\.\[gcs\]'"):
        paths.as_path("gs://bucket/run")


def test_data_are_prepared_in_a_bucket_from_a_bucket(bucket, tmp_path, monkeypatch, chapters):  # noqa: F811
    """As Beam's workers do, which share nothing else. Oracle: the same preparation on a disk."""
    monkeypatch.setattr(reading, "PART_BYTES", 90_000)
    lines = [json.dumps({"text": text}) + "\n" for text in chapters]
    digests = []
    for root in (tmp_path, bucket):
        corpus = root / "corpora" / "c4" / "train"
        corpus.mkdir(parents=True, exist_ok=True)
        (corpus / "a.jsonl").write_text("".join(lines[:30]))
        (corpus / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[30:]).encode()))
        (corpus.parent / "validation.jsonl").write_text("".join(lines[:4]))
        monkeypatch.setenv("SDTT_JAX_CORPORA", str(root / "corpora"))
        config = DataConfig("c4", length=32, deduplicate=True)
        arguments = (
            config,
            TokenizerConfig(kind="gpt2"),
            root / "d" / "data",
            root / "d" / "tokenizer",
        )
        if root is bucket:
            with monkeypatch.context() as patch:
                patch.setattr(ingest.ReadPart, "run", stop_at_the_third(ingest.ReadPart.run))
                with pytest.raises(KeyboardInterrupt):
                    prepare(*arguments)
        info = prepare(*arguments)
        assert prepare(*arguments) == info
        assert [p.name for p in (root / "d").iterdir() if p.name.startswith(".")] == []
        manifest = json.loads((root / "d" / "data" / "manifest.json").read_text())
        digests.append((info, manifest["shards"], manifest["splits"]))
    assert digests[0] == digests[1]
    mirror.download(bucket / "d" / "data", tmp_path / "there", "info.json")
    assert len(open_split(tmp_path / "there", "train")) == info.num_train


def stop_at_the_third(run):
    def stopping(task):
        if task.number == 2:
            raise KeyboardInterrupt
        run(task)

    return stopping


@pytest.mark.slow
def test_a_whole_run_in_a_bucket(server, bucket, shortest, tmp_path):
    """The smallest run through every stage; a second host finds it finished, a third samples from it."""

    def run(host: str, module: str, *arguments: str) -> Finished:
        cache = {"SDTT_JAX_CACHE": str(tmp_path / host)}
        done = run_module(f"experiments.{module}", arguments, server | cache)
        assert done.status == 0, done.stderr
        return done

    # The sizes are those of smoke.py, whose programs other tests have compiled. The teacher's third
    # checkpoint replaces its first.
    corpus = next(option for option in shortest if option.startswith("--config.data.corpus"))
    arguments = (
        SMOKE, "--workdir=gs://bucket/run", corpus, "--config.distill.num_rounds=1",
        "--config.teacher.train.save_every=10", "--config.judge.train.save_every=20",
        "--config.distill.train.save_every=12", "--config.evaluation.num_texts=32",
        "--config.evaluation.validation_sequences=32",
    )  # fmt: skip
    run("first", "run", *arguments)
    root = bucket / "run"
    assert [r["round"] for r in json.loads((root / "results.json").read_text())["rounds"]] == [1]
    assert "<html" in (root / "report.html").read_text(encoding="utf-8")

    again = run("second", "run", *arguments)
    for stage in ("teacher", "judge", "distill", "evaluate", "report"):
        assert f"{stage}: finished before" in again.stdout

    sampled = run(
        "third", "sample", "--checkpoint=gs://bucket/run", "--num_steps=4", "--num_samples=2"
    )
    assert sampled.stdout.count("—") >= 2
