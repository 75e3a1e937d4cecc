"""The page as a document: complete, self-contained, escaped, and honest about what is missing."""

import json
import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sdtt_jax.reporting import write_report
from sdtt_jax.reporting.palette import duration, number, percent
from sdtt_jax.reporting.record import read_run
from sdtt_jax.reporting.report import command, page
from tests.reporting.conftest import FIELDS

VOID = {"meta", "link", "input", "br", "hr", "img"}


class Outline(HTMLParser):
    """Checks that tags are balanced, and collects ids, external addresses and data scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.data = ""
        self.in_data = False

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.addresses += [attributes[k] for k in ("src", "href") if k in attributes]
        self.in_data = attributes.get("type") == "application/json"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.in_data = False

    def handle_data(self, data):
        if self.in_data:
            self.data += data


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_a_noise_coupled_student_has_a_section_with_a_figure_and_a_table(make_workdir):
    path = write_report(make_workdir(coupled_log_ratios={1: -0.8, 2: math.log(0.6)}))
    page = path.read_text(encoding="utf-8")
    assert "A student that sees its noise" in page
    assert "Perplexity at very few calls" in page
    assert '<blockquote dir="auto">' in page  # a text has the direction of its own script
    assert (
        "whose texts are drawn\n      independently" in page
    )  # each way of writing has its own keys
    assert "−40\u202f% (95\u202f% −43\u202f% to −37\u202f%)" in page


@pytest.mark.parametrize("absent", ["coupled", "coupled_idlm"])
def test_before_idlm_has_the_same_number_of_calls_or_a_dash(make_workdir, absent):
    """Oracle: 80 exp(ratio) / calls. A student of which a measurement is absent has no such row."""

    def lose(results):
        del results[absent]["calls"]["1"]["drawn"]["gen_ppl"]

    ratios = {1: math.log(0.7), 2: math.log(0.6), 4: math.log(0.5)}
    workdir = make_workdir(coupled_log_ratios=ratios, idlm_log_ratios=ratios, change_results=lose)
    page = write_report(workdir).read_text(encoding="utf-8")
    outline(page)
    rows = re.findall(r'<tr><th scope="row">(\d)</th>(.*?)</tr>', page, re.DOTALL)
    last = {int(calls): re.findall(r"<td>.*?</td>", cells)[-1] for calls, cells in rows}
    matched = {1: "<td><span>–</span></td>", 2: "24.0", 4: "10.0"}
    assert set(last) == ({1, 2, 4} if absent == "coupled" else {2, 4})
    assert all(matched[calls] in cell for calls, cell in last.items())


def test_the_training_curves_of_several_rounds_have_their_numbers(make_workdir):
    workdir = make_workdir(rounds=2, evaluated=False)
    lines = (workdir / "metrics.jsonl").read_text()
    coupled = lines.replace('"distill"', '"coupled"')
    line = '{"stage": "alpha", "round": 1, "step": 1, "loss": 2.0}\n'
    others = "".join(line.replace("alpha", name) for name in ("alpha", "coupled_idlm"))
    (workdir / "metrics.jsonl").write_text(lines + coupled + others)
    page = write_report(workdir).read_text(encoding="utf-8")
    titles = re.findall(r"Training loss: ([^<\"]*)", page)
    stages = ["Teacher", "Judge", "Round 1", "Round 2"]
    assert titles == [*stages, "Coupled, round 1", "Coupled, round 2", "Alpha", "Coupled IDLM"]


def test_the_page_is_complete_and_needs_no_network(make_workdir):
    path = write_report(make_workdir())
    page = path.read_text(encoding="utf-8")
    parsed = outline(page)
    assert path.name == "report.html"
    assert path.stat().st_size < 1_500_000
    assert parsed.addresses == ["data:,"]
    assert "url(" not in page
    assert len(parsed.ids) == len(set(parsed.ids))
    for section in ("quality", "denoising", "samples", "table", "rounds", "training", "settings"):
        assert section in parsed.ids
    for text in ("gain share", "512 texts", "tokens/s", "kl-bwd", "configs/demo.py"):
        assert text.lower() in page.lower()


def test_the_same_run_gives_the_same_page(make_workdir):
    workdir = make_workdir()
    assert write_report(workdir).read_bytes() == write_report(workdir).read_bytes()
    assert not list(workdir.glob("*.partial"))


def test_seven_rounds_of_a_long_run_stay_small(make_workdir):
    path = write_report(make_workdir(rounds=7, log_ratio=-0.1))
    assert path.stat().st_size < 1_500_000
    assert "--r7" in path.read_text(encoding="utf-8")


def test_text_of_the_run_cannot_become_markup(make_workdir):
    attack = "</script><script>alert(1)</script><img src=x>"

    def change(samples):
        samples["texts"]["student"]["8"][0] = attack
        samples["animation"]["title"] = attack
        samples["animation"]["frames"][-1][0] = attack

    workdir = make_workdir(
        change_samples=change, config={"config_file": attack, "x": {"y": attack}}
    )
    page = write_report(workdir).read_text(encoding="utf-8")
    parsed = outline(page)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert json.loads(parsed.data)["pieces"][0] == attack


@pytest.mark.parametrize("rounds", [0, 1, 3])
@pytest.mark.parametrize("missing", ["baseline_ar", "data", "num_texts", "timing"])
def test_missing_measurements_are_left_out(make_workdir, rounds, missing):
    workdir = make_workdir(rounds=rounds, change_results=lambda r: r.pop(missing))
    page = write_report(workdir).read_text(encoding="utf-8")
    outline(page)
    assert ("No causal baseline was measured" in page) == (missing == "baseline_ar")
    assert ("There is no student yet" in page) == (rounds == 0)
    assert not re.search(r"\b(None|nan|Undefined)\b", page)


def test_a_round_without_paired_interval_or_gain_share_still_counts(make_workdir):
    def drop(results):
        for entry in results["rounds"]:
            for name in ("paired", "gain_share", "teacher_divergence", "floor", "dt"):
                del entry[name]

    page = write_report(make_workdir(change_results=drop)).read_text(encoding="utf-8")
    assert "No paired comparison" in page


def test_without_a_script_there_is_no_player_whose_buttons_do_nothing(make_workdir):
    """The page had an empty frame with dead buttons. Oracle: the style that only such a reader gets."""
    page = write_report(make_workdir()).read_text(encoding="utf-8")
    (only,) = re.findall(r"<noscript>(.*?)</noscript>", page)
    assert ".player { display: none; }" in only
    assert "needs JavaScript" in only


def test_a_run_that_has_only_trained_shows_its_curves(make_workdir):
    page = write_report(make_workdir(evaluated=False)).read_text(encoding="utf-8")
    parsed = outline(page)
    assert "training" in parsed.ids
    assert "quality" not in parsed.ids
    assert "denoising" not in parsed.ids


def test_a_run_that_has_only_begun_still_has_a_page(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 3}')
    page = write_report(tmp_path).read_text(encoding="utf-8")
    outline(page)
    assert "This run has only begun" in page
    assert "--config=CONFIG.py" in page


def test_the_command_that_repeats_a_run_has_the_fields_that_it_was_given(make_workdir):
    """It used to leave them out, and to promise the same bits. Oracle: the words that a shell makes of it."""
    given = ["seed=5", "distillers=('sdtt',)", "data.corpus=my texts/$1's.txt", "judge.checkpoint="]
    config = {"config": FIELDS, "config_file": "my configs/a.py", "overrides": given}
    workdir = make_workdir(config=config)
    found = command(read_run(workdir))
    words = [f"--config.{field}" for field in given]
    program = ["python", "-m", "experiments.run", "--config=my configs/a.py", "--workdir=DIR"]
    assert shlex.split(found) == [*program, *words]
    assert """ --config.seed=5 --config.distillers="('sdtt',)" """ in found
    page = write_report(workdir).read_text(encoding="utf-8")
    assert "bit for bit" in page
    assert "--config.seed=5" in page
    del config["overrides"]  # as in runs of earlier versions
    (workdir / "config.json").write_text(json.dumps(config))
    page = write_report(workdir).read_text(encoding="utf-8")
    assert "bit for bit" not in page
    assert "did not record the fields" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (243.4, "243"),
        (23.72, "23.7"),
        (0.0421, "0.0421"),
        (1e-5, "10⁻⁵"),
        (-2.3e-6, "−2.30·10⁻⁶"),
        (12_400, "12\u202f400"),
        (None, "–"),
    ],
)
def test_numbers_read_without_computer_notation(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.12, "+12"),
        (-0.0349, "−3.5"),
        (-0.0004, "−0.04"),
        (0.0, "0.0"),
        (-0.00001, "0.0"),
        (0.0995, "+10"),
        (12.34, "+1\u202f234"),
    ],
)
def test_a_percentage_of_nothing_has_no_sign(share, text):
    """Equal texts were "+0.0 %" apart, and an interval of small losses ended at "−0.0 %"."""
    assert percent(share, sign=True) == f"{text}\u202f%"


def test_durations_read_like_speech():
    assert [duration(s) for s in (0.4, 42.0, 185.0, 5520.0)] == [
        "0.4 s",
        "42 s",
        "3 min 05 s",
        "1 h 32 min",
    ]


def test_a_judge_that_the_run_was_given_is_not_said_to_be_of_its_corpus(make_workdir):
    trained = "a causal model trained on the same corpus"
    workdir = make_workdir()
    assert trained in write_report(workdir).read_text(encoding="utf-8")
    config = {"config": {"judge": {"checkpoint": "smollm2"}}}
    (workdir / "config.json").write_text(json.dumps(config))
    page = " ".join(write_report(workdir).read_text(encoding="utf-8").split())
    assert trained not in page
    assert "The judge is the causal model smollm2, which this run did not train; its" in page


def test_the_stored_report_has_the_style_sheet_of_today():
    """Its run is gone, so after a change of the style this element is copied from `page("page.html", 4)`.

    It printed half of its tables. Oracle: the element of a page of four rounds.
    """
    pages = Path("docs/figures/evening.html").read_text(encoding="utf-8"), page("page.html", 4)
    stored, today = (re.search(r"<style>.*?</style>", each, re.S)[0] for each in pages)
    assert stored == today
