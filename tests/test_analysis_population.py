"""The section of a population: what cluster.population writes, in words, tables and figures."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from test_analysis_report import make_plan, write_study

from analysis import sections
from analysis.plan import load_study
from analysis.population import section
from analysis.report import build_report
from jbot.record import RecordError, Storage
from jbot.searches import POPULATION, Member, Population, load_population

LR, KOLEO = "optim.lr", "loss.koleo_weight"
# (value, parent) by generation, then member: 2 fails and copies 0; 1 is worst of the second and copies 2, which wins.
LIVES = [
    [(0.40, None), (0.38, None), (None, None), (0.37, None)],
    [(0.44, 0), (0.41, 1), (0.46, 0), (0.43, 3)],
    [(0.45, 0), (0.50, 2), (0.47, 2), (0.44, 3)],
]
COPIES = {(1, 2), (2, 1)}


def make_population(generations: int = 3) -> Population:
    rows = [
        Member(
            generation=g,
            member=m,
            epoch=2 * (g + 1),
            came="drawn" if g == 0 else "copied" if (g, m) in COPIES else "kept",
            parent=parent,
            knobs={LR: 1e-4 * 3.0 ** (m + g), KOLEO: 0.01 * m},
            trial_id=f"t{g}{m}",
            state="failed" if value is None else "complete",
            value=value,
            overrides={LR: 1e-4},
        )
        for g, lives in enumerate(LIVES[:generations])
        for m, (value, parent) in enumerate(lives)
    ]
    return Population(
        metric="val/knn_accuracy",
        higher_is_better=True,
        seed=0,
        members=4,
        stops=(2, 4, 6),
        fields=(LR, KOLEO),
        lineage=tuple(rows),
        best=1 if generations == 3 else None,
    )


@pytest.fixture
def study(tmp_path):
    """A study whose search was a population, and its storage."""
    plan = make_plan()
    write_study(tmp_path, plan)
    storage = Storage(tmp_path)

    def put(found: Population):
        storage.write_json(f"{plan.study}/{POPULATION}", dataclasses.asdict(found))
        return sections.gather(load_study(f"{tmp_path}/{plan.study}"))

    return put, storage, plan


def test_the_winner_is_followed_back_to_its_first_ancestor(study):
    put, storage, plan = study
    put(make_population())
    found = load_population(storage, plan.study)
    best = found.ranked[0]
    assert (best.member, best.value) == (1, 0.50)
    assert [(row.generation, row.member) for row in found.history(best)] == [(0, 0), (1, 2), (2, 1)]
    assert [row.member for row in found.ranked] == [1, 2, 0, 3]


def test_words_and_tables_say_what_happened(study):
    extra = section(study[0](make_population()))
    assert "4 members trained in 3 generations with one seed" in extra.text[0]
    assert "2 copies in all, 1 failed trial." in extra.text[0]
    assert "Unfinished" not in extra.text[0]
    assert extra.text[1].startswith("Member 1 is best with 0.5000. That is the best of 4")
    best, lineage = extra.tables
    assert [list(row) for row in best.rows] == [
        ["0 to 2", "0", "drawn", "0.0001", "0", "0.4000"],
        ["2 to 4", "2", "copied 0, changed", "0.0027", "0.02", "0.4600"],
        ["4 to 6", "1", "copied 2, changed", "0.0027", "0.01", "0.5000"],
    ]
    assert [list(row) for row in lineage.rows][1:3] == [
        ["1", "0.3800", "0.4100", "0.5000 (copied 2)"],
        ["2", "failed", "0.4600 (copied 0)", "0.4700"],
    ]
    for table in extra.tables:
        assert all(len(row) == len(table.head) for row in table.rows)


def test_the_figures_draw_every_training_and_the_winners_last(study):
    metric, knobs = (picture.figure for picture in section(study[0](make_population())).pictures)
    lines = [line for line in metric.axes[0].lines if len(line.get_xdata()) == 2]
    assert len(lines) == 8  # every training goes on from one that has a value
    dashed = [line for line in lines if line.get_linestyle() == "--"]
    assert [list(line.get_ydata()) for line in dashed] == [[0.40, 0.46], [0.46, 0.50]]
    assert [axes.get_yscale() for axes in knobs.axes] == ["log", "linear"]
    (stairs,) = knobs.axes[1].patches
    np.testing.assert_allclose(stairs.get_data().values, [0.0, 0.02, 0.01])
    np.testing.assert_allclose(stairs.get_data().edges, [0, 2, 4, 6])


def test_an_unfinished_population_says_so_and_one_of_failures_is_drawn(study):
    put, _, _ = study
    assert "Unfinished: 2 of 3 generations have ended." in section(put(make_population(2))).text[0]
    first = make_population(1)
    failed = [dataclasses.replace(row, value=None, state="failed") for row in first.lineage]
    extra = section(put(dataclasses.replace(first, lineage=tuple(failed))))
    assert len(extra.text) == 1
    assert "4 failed trials" in extra.text[0]


def test_it_is_in_the_report_of_studies_that_have_one(tmp_path):
    """And the winner is an arm like any other, with a schedule."""
    winner = {LR: 2e-4, "train.schedule": ["2 optim.lr=0.0027", "4 loss.koleo_weight=0.01"]}
    plan = make_plan(arms=make_plan().arms | {"found": winner})
    folder = str(write_study(tmp_path, plan))
    without = build_report(load_study(folder), tmp_path / "without").read_text()
    assert "Population-based training" not in without
    Storage(tmp_path).write_json(f"{plan.study}/{POPULATION}", dataclasses.asdict(make_population()))
    page = build_report(load_study(folder), tmp_path / "with")
    assert "copied 2, changed" in page.read_text()
    assert "4 loss.koleo_weight=0.01" in page.read_text()
    assert {"population-metric.svg", "population-knobs.pdf"} <= {
        path.name for path in (page.parent / "figures").iterdir()
    }


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"lineage": [{}]}', b"not JSON"])
def test_a_damaged_file_is_an_error_of_one_line(study, content):
    _, storage, plan = study
    storage.write(f"{plan.study}/{POPULATION}", content)
    with pytest.raises(RecordError) as error:
        load_population(storage, plan.study)
    assert POPULATION in str(error.value)
    assert "\n" not in str(error.value)


def test_a_population_whose_winner_is_not_the_study_s_is_not_shown(study):
    best = {LR: 1e-4, "train.schedule": ["2 optim.lr=0.002"]}
    row = dataclasses.replace(make_population().lineage[9], overrides=best)
    lineage = (*make_population().lineage[:9], row, *make_population().lineage[10:])
    put, storage, plan = study
    put(dataclasses.replace(make_population(), lineage=lineage))

    def shown(**arms):
        other = dataclasses.replace(plan, arms={"base": {}} | arms, contrasts=())
        return section(SimpleNamespace(study=SimpleNamespace(plan=other, storage=storage))) is not None

    assert shown(winner=best)
    assert not shown(winner={LR: 1e-3})  # of a search of points that came after it
    assert not shown()
