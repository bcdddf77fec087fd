"""Components from simulated arms: their effects, a factorial against least squares, and what is aliased."""

import itertools

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from simulated import FAILED, make_plan, seed_offset, simulate

from analysis.report.sections import components
from analysis.verdicts import component_design
from jbot.config import flatten

FACTORS = {
    "particle loss": {"loss.particle_weight": 0.0},
    "KoLeo": {"loss.koleo_weight": 0.0},
    "centering": {"teacher.centering": False},
    "rotation": {"augment.rotation": 0.0},
}
NAMES = list(FACTORS)


def overrides(out):
    return {field: value for name in out for field, value in FACTORS[name].items()}


def arm_name(out):
    return "no_" + "_".join(name.split()[0] for name in out) if out else "full"


def arms_of(outs):
    return {arm_name(out): overrides(out) for out in outs}


def whole(names=NAMES):
    return [out for size in range(len(names) + 1) for out in itertools.combinations(names, size)]


def half_fraction():
    """2^(4-1), centering = particle loss x KoLeo x rotation turned round: an odd number of components is out."""
    return [out for out in whole() if len(out) % 2]


def inside(config):
    fields = flatten(config)
    return {name: fields[next(iter(of))] != next(iter(of.values())) for name, of in FACTORS.items()}


def score(config, seed, rng):
    """centering adds 0.06, rotation 0.02 and another 0.01 where centering is in, KoLeo nothing."""
    is_in = inside(config)
    both = is_in["centering"] and is_in["rotation"]
    return 0.3 + 0.06 * is_in["centering"] + 0.02 * is_in["rotation"] + 0.01 * both + seed_offset(seed)


def noisy(config, seed, rng):
    return score(config, seed, rng) + 0.003 * rng.normal()


def test_arms_are_read_by_what_is_out_of_them_whatever_their_name():
    arms = {"a": {}, "b": overrides(["KoLeo"]), "c": overrides(NAMES), "other": {"train.batch": 64}}
    plan = make_plan(arms | {"both": overrides(["KoLeo"]) | {"train.batch": 64}}, factors=FACTORS)
    assert component_design.removed(plan) == {"a": frozenset(), "b": {"KoLeo"}, "c": set(NAMES)}


def test_leave_one_out_and_add_one_in():
    singles = [(name,) for name in NAMES]
    others = [tuple(other for other in NAMES if other != name) for name in NAMES]
    plan = make_plan(arms_of([(), *singles, tuple(NAMES), *others]), factors=FACTORS)
    assert [(w.component, w.treatment, w.control) for w in component_design.left_out(plan)] == [
        (name, "full", arm_name((name,))) for name in NAMES
    ]
    assert [(w.component, w.treatment, w.control) for w in component_design.added_alone(plan)] == [
        (name, arm_name(out), arm_name(tuple(NAMES))) for name, out in zip(NAMES, others, strict=True)
    ]
    assert component_design.factorial(plan) is None
    assert component_design.alias_lines(plan) == []


def test_component_that_implies_another_is_still_its_own_leave_one_out():
    factors = {"weight": {"loss.koleo_weight": 0.0}, "both": {"loss.koleo_weight": 0.0, "teacher.centering": False}}
    plan = make_plan({"full": {}, "x": factors["both"]}, factors=factors)
    assert component_design.left_out(plan)[0].component == "both"


def test_component_that_is_out_of_the_base_is_named_and_not_measured(tmp_path):
    factors = FACTORS | {"dropout": {"augment.split_fraction": 1.0}}
    plan = make_plan(arms_of([(), ("KoLeo",)]), factors=factors)
    assert list(component_design.components(plan)) == NAMES
    made = components.section(simulate(tmp_path, plan, noisy))
    assert "Already out of the base, so not measured: dropout." in made.sentences


def test_effects_are_paired_differences_with_failures_counted(tmp_path):
    singles = [(name,) for name in NAMES]
    others = [tuple(other for other in NAMES if other != name) for name in NAMES]
    plan = make_plan(arms_of([(), *singles, tuple(NAMES), *others]), factors=FACTORS, seeds=10)
    lost = {(arm_name(("centering",)), 3): FAILED}
    evidence = simulate(tmp_path, plan, noisy, lost)
    made = components.section(evidence)
    rows = {row[0]: row for row in made.tables[0].rows}
    gaps = (evidence.scores["full"] - evidence.scores["no_centering"]).dropna()
    assert gaps.mean() == pytest.approx(0.07, abs=0.005)
    assert rows["centering"][1].startswith(f"+{gaps.mean():.4f}"[:6])
    assert (rows["centering"][3], rows["KoLeo"][3]) == ("9", "10")
    assert any(line.startswith("Trials failed without centering (1)") for line in made.sentences)
    full = next(line for line in made.sentences if line.startswith("Left out of the full recipe"))
    assert "rotation (+0.03" in full
    assert "help" in full
    assert "nothing is shown for particle loss and KoLeo" in full
    together = next(line for line in made.sentences if line.startswith("All components together"))
    assert "so they need each other" in together  # of 0.09 together, 0.10 is lost one by one
    assert [picture.name for picture in made.figures] == ["components-single"]


def test_barest_recipe_may_keep_a_component_without_which_nothing_is_learnt(tmp_path):
    """Two losses cannot both be out: to one of them alone the others are added, and to the other one the first."""
    bare, other = [tuple(n for n in NAMES if n != kept) for kept in ("particle loss", "KoLeo")]
    pairs = [tuple(n for n in NAMES if n not in ("particle loss", added)) for added in NAMES[1:]]
    arms = arms_of([(), *((name,) for name in NAMES), bare, other, *pairs])
    plan = make_plan(arms, factors=FACTORS, seeds=8)
    found = {one.component: (one.treatment, one.control) for one in component_design.added_alone(plan)}
    assert found["centering"] == (arm_name(("KoLeo", "rotation")), arm_name(bare))
    assert found["particle loss"] == (arm_name(("centering", "rotation")), arm_name(other))
    assert list(found) == NAMES
    assert component_design.alias_lines(plan) == []
    text = " ".join(components.section(simulate(tmp_path, plan, noisy)).sentences)
    assert (
        f"Added alone, to {arm_name(other)} (particle loss) and {arm_name(bare)} (KoLeo, centering and rotation)"
        in text
    )
    assert "All components but particle loss together have an effect of +0.0" in text


def test_few_seeds_show_nothing_and_the_section_says_so(tmp_path):
    plan = make_plan(arms_of([(), *((name,) for name in NAMES)]), factors=FACTORS, seeds=3)
    text = " ".join(components.section(simulate(tmp_path, plan, noisy)).sentences)
    assert "3 seeds can show nothing here, as their smallest p is 0.25" in text
    assert "though the interval excludes zero: centering (+0.07" in text
    assert " help" not in text.replace("that it helps", "")


def test_one_seed_gives_numbers_without_intervals(tmp_path):
    plan = make_plan(arms_of(whole()), factors=FACTORS, seeds=1)
    made = components.section(simulate(tmp_path, plan, noisy))
    assert {row[2] for row in made.tables[0].rows} == {"–"}
    assert {row[4] for row in made.tables[1].rows} == {"–"}


def test_study_without_any_score(tmp_path):
    plan = make_plan(arms_of(whole()), factors=FACTORS, seeds=2)
    lost = {(arm, seed): FAILED for arm in plan.arms for seed in plan.seeds}
    made = components.section(simulate(tmp_path, plan, noisy, lost))
    assert {row[1] for row in made.tables[0].rows} == {"–"}


def test_no_components_no_section(tmp_path):
    assert components.section(simulate(tmp_path, make_plan(arms_of(whole()), seeds=2), noisy)) is None
    plan = make_plan({"full": {}, "bigger": {"train.batch": 64}}, factors=FACTORS, seeds=2, study="other")
    assert components.section(simulate(tmp_path, plan, noisy)) is None


def test_effects_are_those_of_least_squares(tmp_path):
    plan = make_plan(arms_of(whole()), factors=FACTORS, seeds=4)
    evidence = simulate(tmp_path, plan, noisy)
    found = component_design.factorial(plan)
    assert (len(found.arms), found.resolution) == (16, 0)
    columns = component_design.columns(found)
    assert len(columns) == 4 + 6
    design = sm.add_constant(np.column_stack([column.signs for column in columns]))
    for seed, row in evidence.scores[list(found.arms)].iterrows():
        fit = sm.OLS(row.to_numpy(), design).fit()
        mine = [component_design.effect_sizes(found, column, evidence.scores)[seed] for column in columns]
        # A coefficient is the change from 0 to 1, an effect that from -1 to 1.
        np.testing.assert_allclose(mine, 2 * fit.params[1:], atol=1e-12)


def test_effects_of_a_known_truth():
    plan = make_plan(arms_of(whole()), factors=FACTORS, seeds=2)
    found = component_design.factorial(plan)
    sizes = {arm: {n: n not in out for n in NAMES} for arm, out in component_design.removed(plan).items()}
    values = {
        arm: 0.06 * i["centering"] + 0.02 * i["rotation"] + 0.01 * (i["centering"] and i["rotation"])
        for arm, i in sizes.items()
    }
    scores = pd.DataFrame([values, values])
    by_name = {c.name: component_design.effect_sizes(found, c, scores) for c in component_design.columns(found)}
    expected = {"centering": 0.065, "rotation": 0.025, "centering × rotation": 0.005, "KoLeo": 0.0}
    for name, size in expected.items():
        np.testing.assert_allclose(by_name[name], [size, size], atol=1e-12)


def test_half_fraction_is_resolution_iv_and_its_aliases_have_signs():
    """Out are odd numbers of components: the product of all signs is -1, so A x B = - C x D."""
    plan = make_plan(arms_of(half_fraction()), factors=FACTORS)
    found = component_design.factorial(plan)
    assert (len(found.arms), found.resolution) == (8, 4)
    names = [column.name for column in component_design.columns(found)]
    assert names[:4] == NAMES
    assert set(names[4:]) == {
        "particle loss × KoLeo − centering × rotation",
        "particle loss × centering − KoLeo × rotation",
        "particle loss × rotation − KoLeo × centering",
    }
    lines = component_design.alias_lines(plan)
    assert lines[0].startswith("Fractional factorial: 8 of the 16 combinations of 4 components")
    assert "resolution IV: main effects are clear of two-factor interactions" in lines[0]
    assert lines[1] == "Aliased, only the sum is estimated: particle loss × KoLeo − centering × rotation."
    assert len(lines) == 4


def test_quarter_of_three_components_mixes_main_effects_with_interactions():
    outs = [(), ("particle loss", "KoLeo"), ("particle loss", "centering"), ("KoLeo", "centering")]
    factors = {name: FACTORS[name] for name in NAMES[:3]}
    plan = make_plan(arms_of(outs), factors=factors)
    found = component_design.factorial(plan)
    assert found.resolution == 3
    assert [column.name for column in component_design.columns(found)] == [
        "particle loss + KoLeo × centering",
        "KoLeo + particle loss × centering",
        "centering + particle loss × KoLeo",
    ]
    assert (
        "resolution III: main effects are aliased with two-factor interactions" in component_design.alias_lines(plan)[0]
    )


def test_components_that_always_go_together_are_resolution_ii():
    outs = [(), ("particle loss", "KoLeo"), ("centering",), ("particle loss", "KoLeo", "centering")]
    factors = {name: FACTORS[name] for name in NAMES[:3]}
    plan = make_plan(arms_of(outs), factors=factors)
    assert component_design.factorial(plan).resolution == 2
    assert "particle loss + KoLeo" in component_design.columns(component_design.factorial(plan))[0].name


def test_factorial_is_found_beside_other_arms():
    """A whole 2^2 among leave-one-out arms of four components, and a half fraction beside the full recipe."""
    square = arms_of([(), *((name,) for name in NAMES), ("KoLeo", "centering")])
    found = component_design.factorial(make_plan(square, factors=FACTORS))
    assert (found.components, found.resolution) == (("KoLeo", "centering"), 0)
    even = [out for out in whole() if len(out) % 2 == 0]
    found = component_design.factorial(make_plan(arms_of([*even, ("KoLeo",), ("rotation",)]), factors=FACTORS))
    assert (len(found.arms), found.resolution) == (8, 4)


def test_irregular_arms_are_named_and_give_no_effects():
    outs = [(), ("particle loss", "KoLeo"), ("particle loss", "centering")]
    plan = make_plan(arms_of(outs), factors=FACTORS)
    assert component_design.factorial(plan) is None
    assert component_design.alias_lines(plan) == [
        "2 arms with several components out, but no regular fraction of a factorial: "
        "effects and interactions are not estimated."
    ]


def test_seed_without_all_arms_of_the_factorial_is_left_out():
    plan = make_plan(arms_of(whole()), factors=FACTORS, seeds=3)
    found = component_design.factorial(plan)
    scores = pd.DataFrame(0.5, index=range(3), columns=list(plan.arms))
    scores.loc[1, "full"] = np.nan
    assert len(component_design.effect_sizes(found, component_design.columns(found)[0], scores)) == 2
