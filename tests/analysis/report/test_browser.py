"""The report in a real headless Chromium: what a reader sees, on a screen, on a phone, in print and by keyboard.

Needs playwright (extra `dev`) and a Chromium: the machine's own, `JBOT_CHROMIUM`, or that of ``playwright install``.
"""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
from test_report import FAILED, make_plan, write_study

from analysis.report import build
from jbot.store.plan import Contrast, load_study

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")

CHROMIUM = os.environ.get("JBOT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
LONG = "an_arm_with_a_name_that_is_far_too_long_for_any_figure_or_phone"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        try:
            found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium can be started: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A report with much to go wrong: long and many names, a failed arm, several primary contrasts, MLflow links."""
    arms = {"momentum": {}, "random": {"mask.scheme": "random"}, LONG: {"mask.scheme": "none"}}
    arms["dead"] = {"loss.koleo_weight": 0.5}
    contrasts = tuple(Contrast(treatment="momentum", control=arm, primary=True) for arm in list(arms)[1:])
    arms["geometric"] = {"mask.scheme": "geometric"}  # a second line of names above each figure
    plan = make_plan(arms=arms, contrasts=contrasts, seeds=(0, 1, 2, 3))
    failed = {("dead", seed): FAILED for seed in plan.seeds}
    folder = write_study(tmp_path_factory.mktemp("results"), plan, changes=failed, files=True)
    study = load_study(str(folder))
    runs = {trial.trial_id: f"run{i:05d}" for i, trial in enumerate(study.trials)}
    (folder / "mlflow.json").write_text(json.dumps({"ui": "", "experiment_id": "1", "parent": "", "runs": runs}))
    return build.build_report(study, folder).as_uri()


def opened(browser, address, width=1280, **options):
    """A page and everything its console said."""
    page = browser.new_context(viewport={"width": width, "height": 800}, **options).new_page()
    page.said = []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.goto(address)
    return page


def overflowing(page):
    """Elements that stick out of the page, but for what scrolls in a frame of its own."""
    return page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter(e => !e.closest(".wide, svg, .skip") &&
           e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML)"""
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_overflows_and_the_console_is_silent(browser, address, width, scheme):
    page = opened(browser, address, width, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert overflowing(page) == []
    assert page.said == []


def test_question_verdict_and_figure_are_on_the_first_screen(browser, address):
    page = opened(browser, address)
    for what in ("h1", ".verdict .word", "figure svg"):
        box = page.locator(what).first.bounding_box()
        assert box["y"] + min(box["height"], 120) < 800, what
    assert page.locator(".verdict.failed").inner_text().startswith("Failed")


def test_the_words_of_a_figure_stay_inside_and_apart(browser, address):
    page = opened(browser, address)
    svg = page.locator(".hero svg").bounding_box()
    words = [word.bounding_box() for word in page.locator(".hero svg text").all()]
    assert all(svg["x"] - 1 <= w["x"] and w["x"] + w["width"] <= svg["x"] + svg["width"] + 1 for w in words)
    assert [(a, b) for i, a in enumerate(words) for b in words[:i] if overlap(a, b)] == []


def test_the_words_of_all_figures_are_whole(browser, address):
    """From their first letter to their last; the box of a formula is wider than it on the other two sides."""
    page = opened(browser, address)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    cut = page.evaluate(
        """() => [...document.querySelectorAll("figure svg")].flatMap(svg => {
            const frame = svg.getBoundingClientRect();
            return [...svg.querySelectorAll("text")].filter(word => {
                const box = word.getBoundingClientRect();
                return Math.abs(word.getScreenCTM().b) > 0.1  // upright
                    ? box.top < frame.top - 1 || box.bottom > frame.bottom + 1
                    : box.left < frame.left - 1 || box.right > frame.right + 1;
            }).map(word => word.textContent);
        })"""
    )
    assert cut == []


def overlap(a, b):
    wide = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
    high = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
    return wide > 1 and high > 4


def test_figures_say_their_values_to_the_pointer_and_the_keyboard(browser, address):
    page = opened(browser, address)
    figure, tip = page.locator(".hero figure"), page.locator(".tip")
    figure.focus()
    page.keyboard.press("ArrowRight")
    assert tip.is_visible()
    first = tip.inner_text()
    page.keyboard.press("ArrowRight")
    assert tip.inner_text() != first
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    box = figure.locator(".mark[data-tips] use").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert tip.is_visible()
    assert "momentum − random" in tip.inner_text()


def test_arms_are_switched_off_and_on(browser, address):
    page = opened(browser, address)
    button = page.locator(".toggles button", has_text="random").first
    marks = page.locator('.mark[data-arm="random"]')
    assert button.get_attribute("aria-pressed") == "true"
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert not any(mark.is_visible() for mark in marks.all())
    assert page.locator('.mark[data-arm="momentum"]').first.is_visible()
    page.keyboard.press("Enter")
    assert marks.first.is_visible()


def test_everything_is_said_without_script(browser, address):
    page = opened(browser, address, java_script_enabled=False)
    assert page.locator(".hero figure svg").is_visible()
    assert page.locator(".toggles").count() == 0
    assert "momentum − random" in page.locator("#differences + .wide").inner_text()


def test_links_of_the_page_arrive(browser, address):
    page = opened(browser, address)
    inner = page.eval_on_selector_all('a[href^="#"]', "all => all.map(a => a.getAttribute('href').slice(1))")
    assert [name for name in inner if page.locator(f"[id='{name}']").count() != 1] == []
    records = page.eval_on_selector_all('#trials ~ .wide a[href^="../"]', "all => all.map(a => a.getAttribute('href'))")
    folder = Path(address.removeprefix("file://")).parent
    assert len(records) == 20
    assert all((folder / name).exists() for name in records)
    assert page.locator('a[href^="http://127.0.0.1:5000/#/experiments/1/runs/"]').count() == 20


def test_print_shows_whole_tables(browser, address):
    page = opened(browser, address, width=800)
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    assert page.evaluate(
        "[...document.querySelectorAll('.wide')].every(e => getComputedStyle(e).overflowX == 'visible')"
    )
    assert len(page.pdf()) > 10_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_no_barrier(browser, address, width, scheme):
    """Contrast, names, roles and order by axe-core (WCAG 2.1 A and AA)."""
    spec = importlib.util.find_spec("axe_core_python")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("axe-core-python is not installed (extra dev)")
    axe = Path(spec.submodule_search_locations[0]) / "axe.min.js"
    # The page forbids every script but its own; the check is one more.
    page = opened(browser, address, width, color_scheme=scheme, bypass_csp=True)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.add_script_tag(path=str(axe))
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
    found = page.evaluate("tags => axe.run(document, {runOnly: tags})", tags)["violations"]
    barriers = [(one["id"], [node["html"][:150] for node in one["nodes"]][:3]) for one in found]
    assert barriers == []
