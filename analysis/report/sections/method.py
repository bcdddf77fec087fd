"""The plan as it was stated before the study ran, where the numbers come from, and the terms of the report."""

from __future__ import annotations

from analysis.report.evidence import Evidence
from analysis.report.section import Section
from analysis.stats import paired, power, sequential
from analysis.verdicts import arm_settings, provenance
from analysis.verdicts import number_format as fmt
from analysis.verdicts.sentences import contrast_name
from jbot.config import differences
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.plan import Plan

NO_DEVIATION = "None: as far as recorded, one plan, one data set, one code version and one kind of machine."
STATED = "Stated before the study ran; its hash is in every record."


def design(evidence: Evidence) -> Section:
    """The design, and what it can find."""
    plan, changes = evidence.plan, differences(evidence.plan.base)
    families = {kind: [contrast_name(c.name) for c in plan.contrasts if c.primary is kind] for kind in (True, False)}
    looks = (
        f"after {', '.join(map(str, plan.looks))} blocks, and no further than every primary contrast is decided; after "
        "a share s of the blocks at most s² of the error level is spent"
    )
    facts = {
        "Primary metric": f"{find_metric(plan.metric).full_label} ({plan.metric}), "
        f"{'higher' if plan.higher_is_better else 'lower'} is better",
        "Margin": f"{plan.margin:g}: smaller differences do not matter",
        "Primary contrasts": ", ".join(families[True]) or "none",
        "Exploratory contrasts": ", ".join(families[False]) or "none",
        "Arms and seeds": f"{fmt.count(len(plan.arms), 'arm')} × {fmt.count(len(plan.seeds), 'seed')}"
        f" = {fmt.count(len(evidence.study.trials), 'trial')}",
        "Error level": f"{plan.alpha:g}, Holm over primary and Benjamini-Hochberg over exploratory contrasts",
        **({"Looks": looks} if plan.looks else {}),
        "What it can find": _power(plan),
        "Preset": plan.preset,
        "Base": f"the paper’s recipe, but {arm_settings.words(changes)}" if changes else "the paper’s recipe",
    }
    return Section(title="Plan", sentences=[STATED], facts=facts)


def _power(plan: Plan) -> str:
    """Smallest p and power of the full design, before any data."""
    if not plan.contrasts:
        return "nothing is compared: every figure comes with its spread over seeds"
    n, family = len(plan.seeds), max(1, sum(c.primary for c in plan.contrasts))
    smallest = paired.min_p(n, family)
    if smallest > plan.alpha:
        equal = power.min_seeds(plan.alpha, family)[1]
        best = "Equivalence at best." if n >= equal else f"Nor equivalence, which takes {equal} seeds."
        return f"no difference: with {n} seeds the smallest p is {fmt.p_value(smallest)}. {best}"
    effect = power.detectable_effect(n, sequential.final_level(plan.looks, plan.alpha), family)
    return (
        f"smallest p {fmt.p_value(smallest)}; 80% power for {effect:.2f} standard deviations of the paired difference"
    )


def sources(evidence: Evidence) -> Section:
    """Code, libraries, machines and data of the records."""
    return Section(title="Provenance", facts=provenance.facts(evidence.study))


def deviations(evidence: Evidence) -> Section:
    """Records that are not what the plan says."""
    found = provenance.deviations(evidence.study)
    return Section(title="Deviations from the plan", sentences=found or [NO_DEVIATION])


def reading(evidence: Evidence) -> Section:
    """The terms of the report, for a reader who has not met them."""
    return Section(
        key="reading",
        title="How to read this",
        facts={
            "Seed, block": "All arms at one seed share initial weights, data order and noise, so they differ only by "
            "what the arm changes. The differences at a seed are what is compared.",
            "Interval": "Of 100 intervals of 95%, 95 contain the true mean difference; a repeated interval does so at "
            "all looks together. It covers the choice of seeds, not the choice of test jets or of data set. Where a "
            "metric is a share, it is cut at 0 and 1.",
            "p": "If the arms were the same, the chance of a mean difference at least this large: the share of all "
            "sign flips of the differences that reach it. It is corrected for the number of contrasts and looks, and "
            "cannot fall below the “smallest p” of so many seeds.",
            "Better, worse": f"p at most {evidence.plan.alpha:g} after correction, and an interval clear of zero; "
            "where trials of the better arm failed, p also with these seeds counted as losses.",
            "Equivalent": "Two one-sided t-tests show that the mean difference is smaller than the margin. A large p "
            "alone is never “no effect”.",
            "Undecided": "Neither is shown. The number of seeds that would probably decide it assumes the size and "
            "spread seen so far.",
            "Figures": "Point at, tap, or step through with Tab and the arrow keys to read values; the buttons above "
            "figures switch arms off. They are vectors: their text can be searched and copied.",
            "Failed trials": "They are an outcome: counted, never averaged. A difference describes the seeds at which "
            "both arms finished.",
        },
    )
