"""The page in Chromium: no console errors, and the animation and the tabs answer to clicks."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sdtt_jax.reporting import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed on this machine"),
]


def browse(
    page: Path, profile: Path, milliseconds: int = 4000, width: int = 1280
) -> tuple[str, list[str]]:
    """The document after some milliseconds of virtual time, and the lines of the console."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions",
        "--no-first-run", "--enable-logging=stderr", f"--user-data-dir={profile}",
        f"--virtual-time-budget={milliseconds}", f"--window-size={width},2400", "--dump-dom",
        page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def with_script(page: Path, script: str) -> Path:
    """A copy of the page with a script that does what a reader would do."""
    copy = page.with_name("driven.html")
    text = page.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>")
    copy.write_text(text, encoding="utf-8")
    return copy


def test_the_console_check_sees_errors(make_workdir, tmp_path):
    """Without this, a Chromium that logs elsewhere would let every page pass."""
    page = with_script(write_report(make_workdir()), "throw new Error('seen')")
    _, console = browse(page, tmp_path / "profile", 500)
    assert any("seen" in line for line in console)


def test_the_animation_plays_to_its_end(make_workdir, tmp_path):
    page = write_report(make_workdir())
    script = (
        "const q = (s) => document.querySelector(s);"
        "q('#slider').value = 0; q('#slider').dispatchEvent(new Event('input'));"
        "document.body.dataset.before = document.querySelectorAll('.masked').length;"
        "q('#play').click();"
    )
    dom, console = browse(with_script(page, script), tmp_path / "profile", 12_000)
    assert console == []
    assert 'data-before="64"' in dom
    assert re.search(r'id="player" data-step="8"', dom)
    assert "step 8 of 8 · 64 of 64 tokens" in dom
    assert len(re.findall(r'<span class="new">', dom)) == 8


def test_steps_and_tabs_answer_to_the_reader(make_workdir, tmp_path):
    page = write_report(make_workdir())
    script = (
        "const q = (s) => document.querySelector(s);"
        "q('#slider').value = 5; q('#slider').dispatchEvent(new Event('input'));"
        "q('#back').click(); q('#back').click(); q('#forward').click();"
        "q('#tab-2').click();"
        "q('svg[data-hover]').dispatchEvent(new PointerEvent('pointermove', {clientX: 200}));"
    )
    dom, console = browse(with_script(page, script), tmp_path / "profile")
    assert console == []
    assert re.search(r'id="player" data-step="4"', dom)
    assert re.search(r'id="tab-2"[^>]*aria-selected="true"', dom)
    assert "<b>" in dom.split('id="tip"')[1][:400]


@pytest.mark.parametrize("evaluated", [False, True])
def test_incomplete_runs_render_without_errors(make_workdir, tmp_path, evaluated):
    page = write_report(make_workdir(rounds=0, evaluated=evaluated))
    _, console = browse(page, tmp_path / "profile", 1000)
    assert console == []


def as_printed(page):
    """The page with its rules for paper applied to the screen."""
    css = page.read_text(encoding="utf-8").replace("@media print", "@media screen")
    page.write_text(css, encoding="utf-8")
    return page


def test_on_paper_all_samples_are_shown_and_no_table_is_cut(make_workdir, tmp_path):
    """Oracle: the boxes of the page, of a sheet's width, with its rules for paper applied to the screen."""
    page = as_printed(write_report(make_workdir()))
    script = (
        "const all = (s) => [...document.querySelectorAll(s)];"
        "all('main > section').forEach((section) => { section.style.width = '640px'; });"
        "all('.numbers thead tr').forEach((row) => {"
        "  for (let i = row.cells.length; i < 9; i++) row.append("
        "    Object.assign(document.createElement('th'), {textContent: 'a long name of 13 (12–14)'}));"
        "});"
        "document.body.dataset.hidden = all('.set').filter((set) => !set.offsetHeight).length;"
        "document.body.dataset.cut = all('.scroll').filter("
        "  (table) => table.scrollWidth > table.clientWidth).length;"
    )
    dom, console = browse(with_script(page, script), tmp_path / "profile", 1000)
    assert console == []
    assert re.search(r'data-hidden="(\d+)" data-cut="(\d+)"', dom).groups() == ("0", "0")


@pytest.mark.parametrize(("paper", "width"), [(True, 718), (False, 718), (False, 768)])
def test_letters_of_figures_have_their_size_on_paper_and_in_small_windows(
    make_workdir, tmp_path, paper, width
):
    """They had twice their size, or two thirds of it. Oracle: the drawing's own size, about."""
    page = write_report(make_workdir())
    if paper:
        as_printed(page)
    script = (
        "const all = (s) => [...document.querySelectorAll(s)].filter((e) => e.clientWidth);"
        "document.body.dataset.scales = all('svg[data-hover]').map("
        "  (svg) => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width);"
        "document.body.dataset.samples = document.querySelectorAll('blockquote').length"
        "  - document.querySelectorAll('blockquote').values().filter("
        "    (text) => text.checkVisibility({contentVisibilityAuto: true})).toArray().length;"
    )
    dom, console = browse(with_script(page, script), tmp_path / "profile", 1000, width)
    assert console == []
    scales = [float(scale) for scale in re.search(r'data-scales="([^"]+)"', dom)[1].split(",")]
    assert 0.85 < min(scales) < max(scales) < 1.4
    hidden = int(re.search(r'data-samples="(\d+)"', dom)[1])
    assert (hidden == 0) == paper  # closed "More samples" are open on paper


def test_a_long_name_leaves_room_for_the_numbers(make_workdir, tmp_path):
    """The column of names stays in sight, and hid the others on a phone. Oracle: the style."""
    script = (
        "const th = document.querySelector('.numbers tbody th');"
        "const name = th.querySelector('span') ?? th;"
        "name.textContent = 'name_of_a_model_'.repeat(20);"
        "document.body.dataset.width = name.scrollWidth;"
    )
    dom, _ = browse(with_script(write_report(make_workdir()), script), tmp_path / "profile", 1000)
    assert int(re.search(r'data-width="(\d+)"', dom)[1]) <= 320
