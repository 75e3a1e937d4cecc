"""The processes that prepare data. Oracle: what one process writes."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from sdtt_jax import paths
from sdtt_jax.data import DataConfig, TokenizerConfig, engines, ingest, prepare, reading
from sdtt_jax.data.tasks import WriteShard
from sdtt_jax.errors import ConfigError, DataError

GPT2 = TokenizerConfig(kind="gpt2")
PART = 20_000


@pytest.fixture(scope="module")
def config(chapters, write_jsonl):
    """Forty chapters and ten of them again, in a dozen parts."""
    path = write_jsonl(chapters + chapters[5:15])
    return DataConfig(str(path), length=32, wrap=True, num_shards=3, deduplicate=True)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(reading, "PART_BYTES", PART)


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def by_one(config, tmp_path_factory):
    """What one process writes."""
    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "PART_BYTES", PART)
        prepare(config, GPT2, folder / "data", folder / "tokenizer")
    return digests(folder)


def test_parts_do_not_matter(by_one, config, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PART_BYTES", 2**30)
    prepare(config, GPT2, tmp_path / "data", tmp_path / "tokenizer")
    assert digests(tmp_path) == by_one


@pytest.mark.parametrize("workers", [2, 4])
def test_several_workers_write_the_same_bytes(by_one, config, tmp_path, workers):
    engine = engines.local(workers)
    prepare(config, GPT2, tmp_path / "data", tmp_path / "tokenizer", engine=engine)
    assert digests(tmp_path) == by_one


def test_beam_writes_the_same_bytes(by_one, config, tmp_path):
    pytest.importorskip(
        "apache_beam", reason="Apache Beam wants another protobuf: docs/guides/data.md"
    )
    engine = engines.beam(["--direct_num_workers=3", "--direct_running_mode=multi_threading"])
    prepare(config, GPT2, tmp_path / "data", tmp_path / "tokenizer", engine=engine)
    assert digests(tmp_path) == by_one


def test_without_beam_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[beam\]'"):
        engines.beam()


VICTIM = """
import json, sys
from sdtt_jax import paths
from sdtt_jax.data import DataConfig, TokenizerConfig, engines, prepare, reading
reading.PART_BYTES = {part}
def told(items, title, total, size):
    for item in items:
        print(title, flush=True)
        yield item
if __name__ == "__main__":
    config = DataConfig(**json.loads(sys.argv[1]))
    folder = sys.argv[2]
    prepare(config, TokenizerConfig(kind="gpt2"), folder + "/data", folder + "/tokenizer", told,
            engine=engines.local(2))
"""


def test_killed_and_repeated_it_writes_the_same_and_reads_nothing_finished_again(
    by_one, config, tmp_path, monkeypatch
):
    """kill -9 of the process that leads the workers, after it has finished the fourth of a dozen parts.

    A worker that dies while it writes a shard leaves half of it, which no finished folder may hold.
    """
    (tmp_path / "victim.py").write_text(VICTIM.format(part=PART))
    arguments = [json.dumps(dataclasses.asdict(config)), str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    victim = subprocess.Popen(
        [sys.executable, str(tmp_path / "victim.py"), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with victim:
        for _ in range(4):
            victim.stdout.readline()
        victim.send_signal(signal.SIGKILL)
        victim.stdout.read()  # to its end: the workers, which hold it too, have died with their parent
    finished = {path.stem for path in (tmp_path / "run" / ".data.work" / "tokens").glob("*.json")}
    assert 4 <= len(finished) < 12
    half = ".packed_tokens-train.array_record-00000-of-00003.9510d211"
    paths.write_text(tmp_path / "run" / ".data.partial" / "packed_tokens" / "1.0.0" / half, "half")
    read = []
    original = ingest.ReadPart.run
    monkeypatch.setattr(
        ingest.ReadPart, "run", lambda task: read.append(f"{task.number:06d}") or original(task)
    )
    prepare(config, GPT2, tmp_path / "run" / "data", tmp_path / "run" / "tokenizer")
    assert not finished & set(read)
    assert digests(tmp_path / "run") == by_one


def test_shards_that_are_gone_are_written_again(by_one, config, tmp_path):
    """As after a full disk whose owner removes the largest hidden folder, or `data/` from a bucket."""

    def stopping(tasks):
        for task in engines.in_process(tasks):
            yield task
            if isinstance(task, WriteShard):
                raise KeyboardInterrupt

    folders = config, GPT2, tmp_path / "data", tmp_path / "tokenizer"
    with pytest.raises(KeyboardInterrupt):
        prepare(*folders, engine=stopping)
    shutil.rmtree(tmp_path / ".data.partial")
    prepare(*folders)
    assert digests(tmp_path) == by_one


@pytest.mark.parametrize("vocabulary", [GPT2, TokenizerConfig(model_type="char", vocab_size=64)])
def test_a_stopped_preparation_goes_on_only_with_the_same_text(tmp_path, monkeypatch, vocabulary):
    """The text has the same size each time, and in the end other documents. Copying a file again does not
    make it another. Oracle: a preparation of the last text that nobody stopped."""
    monkeypatch.setattr(reading, "PART_BYTES", 2_000)
    path, reads = tmp_path / "corpus.jsonl", []

    def stopping(tasks):
        for number, task in enumerate(engines.in_process(tasks)):
            reads.append(task.number)
            if number == 1:
                raise KeyboardInterrupt
            yield task

    def run(folder, engine=engines.in_process):
        config = DataConfig(str(path), length=16)
        return prepare(config, vocabulary, folder / "data", folder / "tokenizer", engine=engine)

    older = [f"OLDER number {number:04} {'OLDER ' * 20}" for number in range(60)]
    newer = [f"NEWER number {number:04} {'NEWER ' * 20}" for number in range(60)]
    newer[30:32] = [newer[30] + newer[31] + " " * len('{"text": ""}\n')]
    for texts in (older, older, newer):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        assert path.stat().st_size == 60 * 151
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", stopping)
    assert reads == [0, 1, 2, 3, 0, 1]
    assert run(tmp_path / "run") == run(tmp_path / "whole")
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")


@dataclasses.dataclass(frozen=True)
class Deadly:
    """A task that kills its worker the first `times` times."""

    folder: str
    times: int

    def run(self):
        done = len(os.listdir(self.folder))
        if done < self.times:
            open(os.path.join(self.folder, str(done)), "w").close()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="macOS has no such sets of cores")
def test_a_process_has_the_cores_that_it_was_given():
    """A job with 2 of 128 cores began 128 workers, and ran out of memory. Oracle: the set that is given."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert engines.cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert engines.cores() == len(before)


def test_a_lost_worker_is_replaced_and_a_deadly_task_is_given_up(tmp_path, caplog):
    tasks = [Deadly(str(tmp_path), 1)]
    assert list(engines.local(2)(tasks)) == tasks
    assert caplog.messages == ["A worker was lost; its task is run again."]
    with pytest.raises(DataError, match="3 workers were lost in a row"):
        list(engines.local(2)([Deadly(str(tmp_path), 9)]))


@dataclasses.dataclass(frozen=True)
class Slow:
    """A task that takes as long as it is told to."""

    seconds: float

    def run(self):
        time.sleep(self.seconds)


def test_whoever_stops_does_not_wait_for_what_is_being_done():
    """As when Ctrl-C or an error in another part stops a preparation."""
    began = time.monotonic()
    finished = engines.local(2)([Slow(0), Slow(60), Slow(60)])
    assert next(finished) == Slow(0)
    finished.close()
    assert time.monotonic() - began < 50


class Wrong(tuple):
    """A task that cannot be done."""

    def run(self):
        raise ValueError("wrong input")


def test_after_an_error_no_process_leaves_anything():
    """Commands end at once, without Python's own end. Oracle: Python says what they leave, on stderr."""
    program = (
        "import os\nfrom sdtt_jax.data import engines\nfrom tests.data.test_engines import Wrong\n"
        "if __name__ == '__main__':\n"
        "    try:\n        list(engines.local(2)([Wrong(), Wrong('2')]))\n"
        "    except ValueError:\n        pass\n    os._exit(1)\n"
    )
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stderr == ""
