"""How much anomaly detection depends on the score and its settings: from the anomaly grids of a study's trials.

Where shares of a variance are given, W, Z and t are the signals: all of them together are no signal of their own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau
from statsmodels.api import OLS, add_constant

from analysis.plots import scores as plots
from analysis.plots.picture import Picture
from analysis.report.evidence import Evidence
from analysis.report.section import Section, Table
from analysis.stats import Floats, paired, variance
from analysis.stats.paired import MeanInterval
from analysis.stats.variance import DRAW, SCORE, SEED, SETTING, Components
from analysis.verdicts import number_format as fmt
from jbot.evaluation.metrics_registry import class_label, find_metric, metric_key, score_label
from jbot.store.plan import StudyRecords
from jbot.store.record import trial_folder

GRID = "anomaly_grid-"
"""How the names of the files begin."""
ALL = "combined"
"""The signal classes together."""
FIXED = ("arm", "bank_jets", "signal")
"""Beside score and setting: factors whose levels are what they are."""
WORDS = {
    SCORE: "score",
    SETTING: "setting within score",
    "arm": "encoder arm",
    "bank_jets": "bank size",
    "signal": "signal",
    SEED: "training seed",
    DRAW: "bank draw",
}
MIN_SHARE = 0.01
"""Interactions below it are not listed one by one, but for those with the seed."""
GEOMETRY = ("intrinsic_dimension", "effective_rank", "anisotropy", "hubness", "condition_number", "uniformity")
MIN_MODELS = 30
"""Trained models from which on a regression on geometry is made."""
ANY = "any score"


def section(evidence: Evidence) -> Section | None:
    """The section; None where the arms of no block have a grid each."""
    grid, left_out = grid_table(evidence.study)
    if grid.empty:
        return None
    trained = grid[grid["trained"]]
    largest = trained[trained["bank_jets"] == trained["bank_jets"].max()]
    optimism, gaps = optimism_table(largest), gap_table(evidence.study, grid)
    tables = [optimism_section(optimism, grid)]
    text = [_design(grid, left_out), _optimism_words(optimism)]
    pictures = [scores_picture(largest, grid)]
    answer, method = [text[-1]], [text.pop(0)]
    if trained["seed"].nunique() > 1 and trained["draw"].nunique() > 1:
        found, jackknifed = shares_of(trained)
        tables.insert(0, shares_section(found, jackknifed))
        text.append(_shares_words(found))
        method.append(SHARES)
        answer.insert(0, text[-1])
        pictures.insert(0, shares_picture(found))
    if trained["seed"].nunique() > 1:
        tables.insert(1 if len(tables) > 1 else 0, ranking_section(trained))
    tables.append(geometry_section(gaps))
    text.append(_geometry_words(gaps))
    if (models := int(gaps["trained"].sum())) >= MIN_MODELS:
        tables.append(regression_section(gaps[gaps["trained"]], models))
    if drawn := geometry_picture(gaps):
        pictures.append(drawn)
    return Section(
        title="Scores, settings and geometry",
        sentences=text,
        method=method,
        tables=tables,
        figures=pictures,
        answer=answer,
    )


def grid_table(study: StudyRecords) -> tuple[pd.DataFrame, list[str]]:
    """Rows of the grids of all blocks in which every arm has one, and settings left out: some bank cannot carry them.

    Of several grids of the study's trials, the one that most of them have.

    Returns
    -------
    DataFrame
        arm, seed, and the columns of :mod:`jbot.evaluation.anomaly.grid`; empty without a block.
    """
    files = {trial: _grids(study, trial.trial_id) for trial in study.trials}
    counted = Counter(name for names in files.values() for name in names)
    if not counted:
        return pd.DataFrame(), []
    name = max(counted, key=lambda name: (counted[name], name))
    seeds = [
        seed for seed in study.plan.seeds if all(name in files[trial] for trial in study.trials if trial.seed == seed)
    ]
    parts = [
        pd.DataFrame(study.storage.read_rows(f"{trial_folder(trial.trial_id)}/{name}")).assign(
            arm=trial.arm, seed=trial.seed
        )
        for trial in study.trials
        if trial.seed in seeds
    ]
    if not parts:
        return pd.DataFrame(), []
    grid = pd.concat(parts, ignore_index=True)
    grid["auc"] = grid["auc"].astype(float)
    missing = grid["auc"].isna().groupby([grid["score"], grid["settings"]]).any()
    lost = missing.index[missing]
    kept = grid[~pd.MultiIndex.from_frame(grid[["score", "settings"]]).isin(lost)].reset_index(drop=True)
    return kept, [f"{score_label(score)} {settings}" for score, settings in lost]


def _grids(study: StudyRecords, trial: str) -> list[str]:
    record = study.records[trial]
    if record is None or record.state != "complete":
        return []
    return [name for name in study.storage.names(trial_folder(trial)) if name.startswith(GRID)]


def _design(grid: pd.DataFrame, left_out: Sequence[str]) -> str:
    trained = grid[grid["trained"]]
    counted = [fmt.count(trained[name].nunique(), noun) for name, noun in (("arm", "arm"), ("seed", "seed"))]
    sizes = " and ".join(f"{size:,}" for size in sorted(trained["bank_jets"].unique()))
    n = len(trained[["score", "settings"]].drop_duplicates())
    text = (
        f"Encoders of {' and '.join(counted)}, each evaluated by {trained['score'].nunique()} scores at {n} settings "
        f"on {fmt.count(trained['draw'].nunique(), 'bank')} of {sizes} training jets each. The test jets are always "
        f"the same: what other ones would change, {fmt.compact(float(trained['error'].median()), 2)} of an AUC "
        "(standard error, median), is in none of the intervals over seeds."
    )
    return text + (f" Left out, as some bank cannot carry them: {'; '.join(left_out)}." if left_out else "")


# Which factors the AUC depends on.


def shares_of(trained: pd.DataFrame) -> tuple[Components, list[Components]]:
    """Shares of the variance of the AUC, and those with each seed left out."""
    singles = trained[trained["signal"] != ALL]
    fixed = [name for name in FIXED if singles[name].nunique() > 1]
    values, scores = array_of(singles, fixed)
    components = variance.variance_components(values, scores, fixed)
    return _grouped(variance.shares(components)), [_grouped(one) for one in variance.jackknife(values, scores, fixed)]


def array_of(rows: pd.DataFrame, fixed: Sequence[str]) -> tuple[Floats, list[str]]:
    """AUC as (setting, *fixed, seed, draw), and the score of each setting."""
    order = ["score", "settings", *fixed, "seed", "draw"]
    series = rows.set_index(order)["auc"].sort_index()
    settings = series.index.droplevel(list(range(2, len(order)))).unique()
    shape = [len(settings), *(len(series.index.unique(level)) for level in order[2:])]
    return series.to_numpy(dtype=float).reshape(shape), [score for score, _ in settings]


def _grouped(found: Components) -> Components:
    """Without the interactions that are not listed, which are put together under the empty name."""
    listed = {
        key: share
        for key, share in found.items()
        if len(key) == 1 or share >= MIN_SHARE or (len(key) == 2 and SEED in key)
    }
    return listed | {frozenset(): sum(found.values()) - sum(listed.values())}


def shares_section(found: Components, jackknifed: Sequence[Components]) -> Table:
    """Main effects first, then interactions; none of a negative estimate."""
    rows = []
    for key, share in _ordered(found):
        left = [one.get(key, math.nan) for one in jackknifed]
        known = [value for value in left if math.isfinite(value)]
        spread = f"{min(known):.1%} to {max(known):.1%}" if known else fmt.MISSING
        rows.append([_name(key), f"{share:.1%}", spread])
    head = ["AUC varies with", "share of the variance", "with any seed left out"]
    return Table(label="Shares of the variance of the AUC", head=head, rows=rows)


def _ordered(found: Components) -> list[tuple[frozenset[str], float]]:
    """Main effects, then interactions by share, the rest last."""
    return sorted(found.items(), key=lambda item: (not item[0], len(item[0]) > 1, -item[1]))


def _name(key: frozenset[str]) -> str:
    if not key:
        return "all other interactions"
    return " × ".join(WORDS[name] for name in WORDS if name in key)


SHARES = (
    "Shares are of a balanced analysis of variance by the method of moments (sums of squares, no fit): each score "
    "weighs the same however many settings it has; scores, settings, signals, sizes and arms are the levels of the "
    "grid, seeds and draws samples whose chance is taken off the other components. A component whose estimate is "
    "negative is shown as 0."
)


def _shares_words(found: Components) -> str:
    """How much is of the score, how much of the encoder, how much of both together."""
    scores, encoder = {SCORE, SETTING}, {SEED, "arm"}
    own = sum(share for key, share in found.items() if key and key <= scores)
    both = sum(share for key, share in found.items() if key & scores and key - scores)
    of_encoder = sum(share for key, share in found.items() if key & encoder and not key & scores)
    return (
        f"What moves the AUC: {of_encoder:.0%} of its variance is of the encoder (its arm and its training seed), "
        f"{own:.0%} of the score and its settings, {both:.0%} of both together, as the score that is best for one "
        "encoder, signal or bank is not for another. The rest is of signals, banks and all other interactions."
    )


# Does the ranking hold elsewhere?


def ranking_section(trained: pd.DataFrame) -> Table:
    """Kendall's tau between the rankings of scores and settings over seeds, signals, draws, sizes and arms."""
    singles = trained[trained["signal"] != ALL]
    across = {
        name: words
        for name, words in {"seed": "seeds", "signal": "signals", "draw": "bank draws", "bank_jets": "bank sizes",
                            "arm": "arms"}.items()
        if singles[name].nunique() > 1
    }  # fmt: skip
    sets = (singles, singles[singles["published"]])
    rows = []
    for name, words in across.items():
        cells = [words]
        for chosen in sets:
            tau = concordance(chosen, name)
            cells += [fmt.number(tau.mean, 2), _bounded(tau)]
        rows.append(cells)
    settings = len(singles[["score", "settings"]].drop_duplicates())
    head = ["rankings compared across", f"tau, {settings} settings", "95% interval"]
    head += ["tau, scores as published", "95% interval"]
    return Table(label="Kendall's tau of rankings by AUC", head=head, rows=rows)


def _bounded(tau: MeanInterval) -> str:
    if not (math.isfinite(tau.low) and math.isfinite(tau.high)):
        return fmt.MISSING
    return fmt.interval(max(-1.0, tau.low), min(1.0, tau.high), tau.standard_error)


def concordance(rows: pd.DataFrame, across: str) -> MeanInterval:
    """Mean Kendall tau-b over pairs of levels of one factor, all others equal (draws are averaged but for their own).

    The interval is Student's t over seeds; across seeds, over the pseudo-values of the jackknife (Efron 1982).
    """
    over = [name for name in ("arm", "bank_jets", "signal") if name != across]
    axes = [*over, *(["draw"] if across == "draw" else []), "seed"]
    means = rows.groupby(["score", "settings", *dict.fromkeys([*over, across, "seed"])])["auc"].mean()
    table = means.unstack(["score", "settings"])
    levels = sorted(rows[across].unique())
    others = [name for name in axes if name != across]
    taus: dict[tuple[int, int], list[float]] = {pair: [] for pair in variance.pairs(len(levels))}
    by_seed: dict[Any, list[float]] = {}
    for place, part in table.groupby(level=others):
        at = part.droplevel(others)
        for one, other in taus:
            tau = float(kendalltau(at.loc[levels[one]], at.loc[levels[other]]).statistic)
            taus[one, other].append(tau)
            if across != "seed":
                by_seed.setdefault(place[others.index("seed")], []).append(tau)
    if across != "seed":
        return paired.mean_interval([float(np.mean(found)) for found in by_seed.values()])
    pairwise = {pair: float(np.mean(found)) for pair, found in taus.items()}
    whole, n = float(np.mean(list(pairwise.values()))), len(levels)
    if n < 3:
        return MeanInterval(n=1, mean=whole, sd=math.nan, low=math.nan, high=math.nan)
    without = [float(np.mean([t for pair, t in pairwise.items() if seed not in pair])) for seed in range(n)]
    pseudo = paired.mean_interval([n * whole - (n - 1) * one for one in without])
    return MeanInterval(
        n=n, mean=whole, sd=pseudo.sd, low=whole - (pseudo.high - pseudo.mean), high=whole + (pseudo.high - pseudo.mean)
    )


# What choosing settings by the labels gains.


def optimism_table(largest: pd.DataFrame) -> pd.DataFrame:
    """AUC at published, chosen and the oracle's settings by score, `any score`, signal and seed.

    Returns
    -------
    DataFrame
        score, signal, seed, published, chosen, oracle; on the largest bank, means over arms and draws. For `any score`
        the score is chosen too, by the synthetic signal or by the oracle; it has no published one.
    """
    where = ["signal", "arm", "seed", "draw"]
    picked = {
        "published": largest[largest["published"]],
        "chosen": largest[largest["chosen"]],
        "oracle": _best(largest, [*where, "score"], "auc"),
    }
    columns = {name: rows.groupby(["score", "signal", "seed"])["auc"].mean() for name, rows in picked.items()}
    chosen_on = largest.dropna(subset=["pilot_auc"])
    any_score = {"chosen": _best(chosen_on, where, "pilot_auc"), "oracle": _best(largest, where, "auc")}
    over_all = {name: rows.groupby(["signal", "seed"])["auc"].mean() for name, rows in any_score.items()}
    whole = pd.DataFrame(over_all).reset_index().assign(score=ANY, published=math.nan)
    return pd.concat([pd.DataFrame(columns).reset_index(), whole], ignore_index=True)


def _best(rows: pd.DataFrame, where: Sequence[str], by: str) -> pd.DataFrame:
    """The row with the highest value at each place, the first of equal ones."""
    return rows.loc[rows.groupby(list(where))[by].idxmax()]


def optimism_section(found: pd.DataFrame, grid: pd.DataFrame) -> Table:
    """By score, over all signals together; and the oracle's gain for each signal."""
    signals = [name for name in ("w", "z", "t") if name in set(found["signal"])]
    counts = grid[["score", "settings"]].drop_duplicates().groupby("score").size()
    untrained = _untrained(grid)
    rows = []
    for score in [*dict.fromkeys(grid["score"]), ANY]:
        rows_of = found[found["score"] == score]
        own = rows_of[rows_of["signal"] == ALL]
        gains = [_mean(rows_of[rows_of["signal"] == name], "oracle", "chosen") for name in (ALL, *signals)]
        rows.append(
            [
                ANY if score == ANY else score_label(score),
                str(int(counts.sum() if score == ANY else counts[score])),
                fmt.number(untrained.get(score, math.nan), 3),
                *(_mean(own, name, sign=False) for name in ("published", "chosen", "oracle")),
                _mean(own, "chosen", "published"),
                *gains,
            ]
        )
    named = [f"oracle − chosen, {class_label(name)}" for name in signals]
    head = ["score", "settings", "untrained, published", "published", "chosen", "oracle", "chosen − published"]
    return Table(label="AUC by settings, largest bank", head=[*head, "oracle − chosen", *named], rows=rows)


def _optimism_words(found: pd.DataFrame) -> str:
    own = found[(found["signal"] == ALL) & (found["score"] != ANY)]
    means = own.groupby("score")[["published", "chosen", "oracle"]].mean()
    gain, best = means["oracle"] - means["chosen"], means.idxmax()
    chosen, oracle = (score_label(best[name]) for name in ("chosen", "oracle"))
    best_words = (
        f"{chosen} either way" if chosen == oracle else f"{chosen} so chosen, {oracle} at the oracle's settings"
    )
    return (
        f"Choosing settings on the test labels, as the oracle does, gains {fmt.number(gain.min(), 3)} "
        f"({score_label(gain.idxmin())}) to {fmt.number(gain.max(), 3)} "
        f"({score_label(gain.idxmax())}) in AUC over choosing them on overlaid background jets. The best "
        f"score is {best_words}."
    )


def _untrained(grid: pd.DataFrame) -> pd.Series:
    """AUC of the encoders before training, at published settings, all signals together, by score."""
    rows = grid[~grid["trained"] & grid["published"] & (grid["signal"] == ALL)]
    return rows[rows["bank_jets"] == grid["bank_jets"].max()].groupby("score")["auc"].mean()


def _mean(rows: pd.DataFrame, name: str, less: str = "", sign: bool = True) -> str:
    values = (rows[name] - rows[less] if less else rows[name]).dropna()
    found = paired.mean_interval(values)
    if found.n < 2 or not found.standard_error > 0:
        return fmt.number(found.mean, 3, sign)
    return fmt.with_error(found.mean, found.standard_error, sign, max_decimals=4)


# The geometry of the embeddings.


def gap_table(study: StudyRecords, grid: pd.DataFrame) -> pd.DataFrame:
    """The gap of each encoder between its best and worst score as published, and the numbers of its geometry.

    Returns
    -------
    DataFrame
        arm, seed, trained, best, worst (names of scores), gap (of the AUC, all signals, mean over draws of the largest
        bank), and the metrics of GEOMETRY, NaN where the record has none.
    """
    rows = grid[grid["published"] & (grid["signal"] == ALL) & (grid["bank_jets"] == grid["bank_jets"].max())]
    means = rows.groupby(["arm", "seed", "trained", "score"], sort=False)["auc"].mean().unstack("score")
    records = {(trial.arm, trial.seed): study.records[trial.trial_id] for trial in study.trials}
    found = []
    for (arm, seed, trained), areas in means.iterrows():
        record = records[arm, seed]
        metrics = {} if record is None else record.metrics
        baseline = "" if trained else "untrained"
        one = {"arm": arm, "seed": seed, "trained": trained, "best": areas.idxmax(), "worst": areas.idxmin()}
        one |= {"gap": areas.max() - areas.min()}
        found.append(one | {name: metrics.get(metric_key(name, baseline=baseline), math.nan) for name in GEOMETRY})
    return pd.DataFrame(found)


def geometry_section(gaps: pd.DataFrame) -> Table:
    """Every encoder."""
    ordered = gaps.sort_values(["trained", "arm", "seed"], ascending=[False, True, True])
    rows = [
        [
            f"{row['arm']}, seed {row['seed']}" + ("" if row["trained"] else ", untrained"),
            fmt.number(row["gap"], 3),
            score_label(row["best"]),
            score_label(row["worst"]),
            *(fmt.compact(row[name]) for name in GEOMETRY),
        ]
        for row in ordered.to_dict("records")
    ]
    head = ["encoder", "gap", "best score", "worst score", *(find_metric(name).label for name in GEOMETRY)]
    return Table(label="Gap between scores, and geometry", head=head, rows=rows, text_columns=(0, 2, 3))


def _geometry_words(gaps: pd.DataFrame) -> str:
    models = int(gaps["trained"].sum())
    text = (
        "The gap of an encoder is between its best and its worst score, as published, all signals together. What "
        "geometry has to do with it is drawn, not fitted: "
    )
    if models < MIN_MODELS:
        return text + (
            f"a regression on {len(GEOMETRY)} numbers of the geometry needs at least {MIN_MODELS} trained models, "
            f"here are {models}, so none is made and a trend among the points proves nothing."
        )
    return text.replace(", not fitted: ", " and fitted to ") + (
        f"{models} trained models. Models of one arm are not independent, so the intervals are too short rather than "
        "too long, and a coefficient says nothing of causes."
    )


def regression_section(trained: pd.DataFrame, models: int) -> Table:
    """Least squares of the gap on the standardised geometry; errors of MacKinnon & White (HC3, 1985)."""
    usable = trained.dropna(subset=list(GEOMETRY))
    x = usable[list(GEOMETRY)].astype(float).assign(condition_number=np.log(usable["condition_number"].astype(float)))
    x = x.loc[:, x.std() > 0]
    fit = OLS(usable["gap"], add_constant((x - x.mean()) / x.std())).fit(cov_type="HC3")
    bounds = fit.conf_int()
    rows = [
        [
            find_metric(name).label + (", logarithm" if name == "condition_number" else ""),
            fmt.with_error(float(fit.params[name]), float(fit.bse[name]), sign=True),
            fmt.interval(float(bounds.loc[name, 0]), float(bounds.loc[name, 1]), float(fit.bse[name])),
        ]
        for name in x.columns
    ]
    label = f"Gap against geometry, {len(usable)} of {models} models, adjusted R² {fit.rsquared_adj:.2f}"
    return Table(label=label, head=["a standard deviation of", "changes the gap by", "95% interval"], rows=rows)


# Figures.


def shares_picture(found: Components) -> Picture:
    """A bar per component."""
    named = [(_name(key), share) for key, share in _ordered(found)]
    alt = "Shares of the variance of the AUC. " + "; ".join(f"{name} {share:.0%}" for name, share in named) + "."
    caption = "Shares of the variance of the anomaly AUC over the grid. Blue: single factors; grey: two or more "
    caption += "together. A bank: the background jets that a score is made of."
    return Picture(name="auc-shares", figure=plots.variance_shares(named), alt=alt, caption=caption)


def scores_picture(largest: pd.DataFrame, grid: pd.DataFrame) -> Picture:
    """How far settings move each score."""
    rows = largest[largest["signal"] == ALL]
    means = rows.groupby(["score", "settings"])["auc"].mean()
    found = optimism_table(rows)
    picked = found.groupby("score")[["published", "chosen", "oracle"]].mean()
    untrained = _untrained(grid)
    drawn = {
        score_label(score): {
            "low": float(means[score].min()),
            "high": float(means[score].max()),
            "untrained": float(untrained.get(score, math.nan)),
            **{str(name): float(value) for name, value in picked.loc[score].items()},
        }
        for score in dict.fromkeys(rows["score"])
    }
    said = "; ".join(f"{name} {one['low']:.3f} to {one['high']:.3f}" for name, one in drawn.items())
    return Picture(
        name="auc-by-score",
        figure=plots.score_ranges(drawn),
        alt=f"AUC of all signals by score over settings: {said}.",
        caption="AUC, all signals together, largest bank, mean over encoders and draws. Bar: over all settings; marks: "
        "as published, chosen on the synthetic signal, by the oracle for each bank and encoder; grey: untrained.",
    )


def geometry_picture(gaps: pd.DataFrame) -> Picture | None:
    """The gap against every number of the geometry that is known."""
    known = [name for name in GEOMETRY if gaps[name].notna().any()]
    if not known:
        return None
    words: dict[str, str] = {name: find_metric(name).label for name in known}
    return Picture(
        name="gap-geometry",
        figure=plots.against_each(gaps, words, "gap", "gap between scores", log=("condition_number",)),
        alt=f"Gap between best and worst score against {', '.join(words.values())}, a point per encoder.",
        caption="Gap between best and worst score, as published, against the geometry. Filled: trained, coloured by "
        "arm; open: untrained.",
    )
