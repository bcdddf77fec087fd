"""What does a verdict cost with a recipe? ``python -m benchmarks.cost_of_verdict NAME --set FIELD=VALUE ...``.

A recipe is a preset with changes, and NAME tells it from others. Two pairs of arms, and the base against itself
(initial weights perturbed by one part in a million), train at five seeds or more. The table has a row for every recipe
of the storage: what a trial costs and reaches, how far arms at one seed lie apart, and from both the core hours in
which one pair is decided at the margin with 80% power, be the arms alike or that far apart. A recipe that learns in
seconds but amplifies rounding pays in seeds what it saves.

Options are those of a study, and the same command continues:

    python -m benchmarks.cost_of_verdict quick                                  the preset quick, 5 seeds
    python -m benchmarks.cost_of_verdict slow --set train.batch=256 --seeds 8   another recipe
    python -m benchmarks.cost_of_verdict                                        the table of those that have run
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.stats import power
from analysis.verdicts import number_format as fmt
from analysis.verdicts.convergence import curve_table, time_to
from analysis.verdicts.decide import decide_study
from benchmarks.report import Cells, number, table
from jbot.cli import bad_input
from jbot.config import ConfigError
from jbot.store.plan import FILE, Contrast, StudyRecords, load_study
from jbot.store.storage import Storage
from studies import Study
from studies.presets import PRESETS
from studies.runner import cli

PREFIX = "cost_of_verdict_"
SEEDS = 5
MARGIN = 0.01
LEVELS = (0.60, 0.65, 0.68)
"""k-NN accuracies of validation jets; the paper's recipe ends near 0.69 on generated jets of 1 TeV."""
CURVE = "val/knn_accuracy"


def study_of(recipe: str) -> Study:
    """The study of one recipe. Raises ConfigError for a name that no study may have."""
    return Study(
        name=f"{PREFIX}{recipe}",
        question=f"What does a verdict cost with the recipe {recipe}?",
        arms={"base": {}, "random_count": {"mask.scheme": "random_count"}, "koleo_0.1": {"loss.koleo_weight": 0.1}},
        contrasts=tuple(Contrast(treatment=arm, control="base", primary=True) for arm in ("random_count", "koleo_0.1")),
        margin=MARGIN,
        seeds_by_preset=dict.fromkeys(PRESETS, SEEDS),
    )


def row_of(study: StudyRecords) -> Cells:
    """What a recipe costs and reaches, as columns of the table; the name alone before two blocks have ended."""
    found, name = decide_study(study), study.plan.study.removeprefix(PREFIX)
    trials, scores = found.trials, found.scores["base"].dropna()
    pairs = [v.difference for v in found.verdicts if v.contrast.primary and v.difference.n > 1]
    if len(scores) < 2 or not pairs:
        return {"recipe": name, "n": len(scores)}
    seconds = float(trials.loc[trials["state"] == "complete", "device_seconds"].median())  # some meet other load
    spread = math.sqrt(np.mean([pair.sd**2 for pair in pairs]))
    alike, apart = (power.seeds_to_decide(mean, spread, MARGIN) or math.inf for mean in (0.0, MARGIN))
    null = next((v.difference for v in found.verdicts if v.null and v.difference.n > 1), None)
    return {
        "recipe": name,
        "n": len(scores),
        "core s": seconds,
        "k-NN": fmt.with_error(scores.mean(), scores.sem()),
        **times(curve_table(study)),
        "sd over seeds": scores.std(),
        "paired sd": ", ".join(f"{pair.sd:.4f}" for pair in pairs),
        "base against itself": f"{null.mean:+.4f}, sd {null.sd:.4f}" if null else "",
        "seeds, alike": alike,
        f"seeds, {MARGIN:g} apart": apart,
        "core hours": max(alike, apart) * 2 * seconds / 3600,
    }


def times(curves: pd.DataFrame) -> dict[str, str]:
    """Core seconds of training until the validation accuracy of the base is first at each level: the median of the
    seeds that reach it, and how many they are."""
    base = curves[(curves["arm"] == "base") & (curves["state"] == "complete")].sort_values("epoch")
    of_seeds = [(one["device_seconds"].to_numpy(), one[CURVE].to_numpy()) for _, one in base.groupby("seed")]
    said = {}
    for level in LEVELS:
        reached = [time for at, value in of_seeds for time, there in [time_to(at, value, level, at[-1])] if there]
        said[f"s to {level:.2f}"] = f"{number(float(np.median(reached)))} ({len(reached)})" if reached else "never"
    return said


def rows(storage: Storage) -> Iterator[Cells]:
    """A row for every recipe of a storage."""
    for name in sorted(storage.names()):
        if name.startswith(PREFIX) and storage.exists(f"{name}/{FILE}"):
            yield row_of(load_study(f"{storage.uri}/{name}"))


def main(arguments: list[str] | None = None) -> int:
    """Run the recipe that is named, and print the table of all; returns the exit code of the study."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    named = bool(words) and not words[0].startswith("-")
    try:
        study = study_of(words.pop(0) if named else "recipe")
        if named:
            cli.main(study, ["--null", *words])
    except ConfigError as error:
        return bad_input(error)
    except SystemExit as end:
        if end.code:
            return int(end.code)
    found = list(rows(Storage(cli.parser(study).parse_args(words).storage)))
    print(table(found) if found else "no recipe has run here: name one, and what it changes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
