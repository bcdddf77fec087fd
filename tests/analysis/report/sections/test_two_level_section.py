"""What the report says of the errors of seeds and of test jets."""

import dataclasses

import numpy as np
from simulated import make_plan, simulate

from analysis.report.evidence import gather
from analysis.report.sections import two_level
from analysis.report.sections.arms import trial_error
from jbot.store.plan import Contrast
from jbot.store.record import trial_folder


def study(root, shared, seeds=6):
    """Two arms on 300 test jets; the treatment gains at every seed, on jets that are the same for all seeds or not."""
    plan = make_plan(
        {"a": {}, "b": {"mask.scheme": "random"}},
        seeds=seeds,
        contrasts=(Contrast(treatment="b", control="a", primary=True),),
    )
    labels = np.repeat(np.arange(5), 60)
    outcome = {}

    def score(config, seed, rng):
        right = np.random.default_rng([seed, 1]).random(300) < 0.5
        if config.mask.scheme == "random":
            gained = np.random.default_rng([0 if shared else seed, 2]).permutation(300)[: 24 + seed % 3]
            right[gained] = True
            if shared:
                right[gained[:4]] = True
        outcome[config.mask.scheme, seed] = right
        return right.mean()

    evidence = simulate(root, plan, score)
    for trial in evidence.study.trials:
        right = outcome["random" if trial.arm == "b" else "momentum", trial.seed]
        probability = np.eye(5, dtype=np.float32)[np.where(right, labels, (labels + 1) % 5)]
        evidence.study.storage.write_arrays(
            f"{trial_folder(trial.trial_id)}/scores.safetensors", {"knn/probability": probability, "label": labels}
        )
    return evidence


def test_section_of_a_report_has_arms_and_contrasts(tmp_path):
    made = two_level.section(study(tmp_path, shared=True))
    assert made.title == "Seeds and test jets"
    (table,) = made.tables
    assert [row[0] for row in table.rows] == ["b − a", "a", "b"]
    assert {row[2] for row in table.rows} == {"300"}
    assert float(table.rows[0][5]) > 0
    assert "the same 300 test jets" in made.sentences[0]


def test_outcomes_that_contradict_the_record_are_not_used(tmp_path):
    evidence = study(tmp_path, shared=True)
    trial = evidence.study.trials[0]
    arrays = evidence.study.arrays(trial.trial_id, "scores")
    arrays["knn/probability"] = arrays["knn/probability"][::-1]
    evidence.study.storage.write_arrays(f"{trial_folder(trial.trial_id)}/scores.safetensors", arrays)
    made = two_level.section(evidence)
    assert trial.arm not in [row[0] for row in made.tables[0].rows]


def test_nothing_is_said_where_outcomes_are_not_kept(tmp_path):
    evidence = simulate(tmp_path, make_plan({"a": {}}), lambda config, seed, rng: 0.5 + 0.01 * seed)
    assert two_level.section(evidence) is None
    assert trial_error(evidence).startswith("One trial carries a test-jet error of 0.008; over seeds")
    assert dataclasses.is_dataclass(gather(evidence.study))
