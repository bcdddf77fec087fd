"""How much anomaly detection depends on the score and its settings: from the anomaly grids of a study's trials.

Where shares of a variance are given, W, Z and t are the signals: all of them together are no signal of their own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy.stats import kendalltau
from statsmodels.api import OLS, add_constant

from analysis.plots import scores as plots
from analysis.report.evidence import Evidence
from analysis.report.section import Picture, Section, Table
from analysis.stats import paired, variance
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
ACROSS = {"seed": "seeds", "signal": "signals", "draw": "bank draws", "bank_jets": "bank sizes", "arm": "arms"}
"""Factors over which rankings are compared."""
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
    several_seeds, models = trained["seed"].nunique() > 1, int(gaps["trained"].sum())
    found, jackknifed = shares_of(trained) if several_seeds and trained["draw"].nunique() > 1 else ({}, [])
    by_shares = [_shares_words(found)] if found else []
    by_settings = _optimism_words(optimism)
    return Section(
        title="Scores, settings and geometry",
        sentences=[by_settings, *by_shares, _geometry_words(models)],
        method=[_design(grid, left_out), *[SHARES] * bool(found)],
        tables=[
            *([_shares_table(found, jackknifed)] if found else []),
            *([_ranking_table(trained, evidence.alpha)] if several_seeds else []),
            _optimism_table(optimism, grid),
            _geometry_table(gaps),
            *([regression_table(gaps[gaps["trained"]], models, evidence.alpha)] if models >= MIN_MODELS else []),
        ],
        figures=[
            *([_shares_picture(found)] if found else []),
            _scores_picture(largest, grid),
            *_geometry_pictures(gaps),
        ],
        answer=[*by_shares, by_settings],
    )


def grid_table(study: StudyRecords) -> tuple[pd.DataFrame, list[str]]:
    """Rows of the grids of all blocks in which every arm has one, and settings left out: some bank cannot carry them.

    Of several grids of the study's trials, the one that most of them have. Columns: arm, seed, and those of
    :mod:`jbot.evaluation.anomaly.grid`; empty without a block.
    """
    ended = {trial: record for trial in study.trials if (record := study.records[trial.trial_id]) is not None}
    files = {
        trial: [name for name in study.storage.names(trial_folder(trial.trial_id)) if name.startswith(GRID)]
        for trial, record in ended.items()
        if record.state == "complete"
    }
    counted = Counter(name for names in files.values() for name in names)
    if not counted:
        return pd.DataFrame(), []
    name = max(counted, key=lambda name: (counted[name], name))
    without = {trial.seed for trial in study.trials if name not in files.get(trial, ())}
    parts = [
        pd.DataFrame(study.storage.read_rows(f"{trial_folder(trial.trial_id)}/{name}")).assign(
            arm=trial.arm, seed=trial.seed
        )
        for trial in study.trials
        if trial.seed in set(study.plan.seeds) - without
    ]
    if not parts:
        return pd.DataFrame(), []
    grid = pd.concat(parts, ignore_index=True).astype({"auc": float})
    missing = grid["auc"].isna().groupby([grid["score"], grid["settings"]]).any()
    lost = missing.index[missing]
    kept = grid[~pd.MultiIndex.from_frame(grid[["score", "settings"]]).isin(lost)].reset_index(drop=True)
    return kept, [f"{score_label(score)} {settings}" for score, settings in lost]


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


def shares_of(trained: pd.DataFrame) -> tuple[Components, list[Components]]:
    """Shares of the variance of the AUC, main effects first, then interactions; and those with each seed left out."""
    singles = trained[trained["signal"] != ALL]
    fixed = [name for name in FIXED if singles[name].nunique() > 1]
    order = ["score", "settings", *fixed, "seed", "draw"]
    areas = singles.set_index(order)["auc"].sort_index()
    settings = areas.index.droplevel(list(range(2, len(order)))).unique()
    shape = [len(settings), *(len(areas.index.unique(level)) for level in order[2:])]
    values, scores = areas.to_numpy(dtype=float).reshape(shape), [score for score, _ in settings]
    components = variance.variance_components(values, scores, fixed)
    return _grouped(variance.shares(components)), [_grouped(one) for one in variance.jackknife(values, scores, fixed)]


def _grouped(found: Components) -> Components:
    """Main effects, then interactions by share, then what is not listed, together under the empty name."""
    listed = {
        key: share
        for key, share in found.items()
        if len(key) == 1 or share >= MIN_SHARE or (len(key) == 2 and SEED in key)
    }
    ordered = dict(sorted(listed.items(), key=lambda item: (len(item[0]) > 1, -item[1])))
    return ordered | {frozenset(): sum(found.values()) - sum(listed.values())}


def _shares_table(found: Components, jackknifed: Sequence[Components]) -> Table:
    rows = []
    for key, share in found.items():
        left = [one.get(key, math.nan) for one in jackknifed]
        known = [value for value in left if math.isfinite(value)]
        spread = f"{min(known):.1%} to {max(known):.1%}" if known else fmt.MISSING
        rows.append([_name(key), f"{share:.1%}", spread])
    head = ["AUC varies with", "share of the variance", "with any seed left out"]
    return Table(label="Shares of the variance of the AUC", head=head, rows=rows)


def _name(key: frozenset[str]) -> str:
    return " × ".join(WORDS[name] for name in WORDS if name in key) or "all other interactions"


SHARES = (
    "Shares are of a balanced analysis of variance by the method of moments (sums of squares, no fit): each score "
    "weighs the same however many settings it has; scores, settings, signals, sizes and arms are the levels of the "
    "grid, seeds and draws samples whose chance is taken off the other components. A component whose estimate is "
    "negative is shown as 0. The range with any seed left out is no confidence interval: of simulated grids of five "
    "seeds it held the true share in about half."
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


def _ranking_table(trained: pd.DataFrame, alpha: float) -> Table:
    """Kendall's tau between the rankings of scores and settings over seeds, signals, draws, sizes and arms."""
    singles = trained[trained["signal"] != ALL]
    rows = []
    for name, words in ACROSS.items():
        if singles[name].nunique() > 1:
            taus = [concordance(chosen, name, alpha) for chosen in (singles, singles[singles["published"]])]
            ends = [fmt.interval(tau.low, tau.high, tau.standard_error, (-1.0, 1.0)) for tau in taus]
            rows.append([words, fmt.number(taus[0].mean, 2), ends[0], fmt.number(taus[1].mean, 2), ends[1]])
    settings = len(singles[["score", "settings"]].drop_duplicates())
    level = f"{fmt.level(alpha)} interval"
    head = ["rankings compared across", f"tau, {settings} settings", level, "tau, scores as published", level]
    return Table(label="Kendall's tau of rankings by AUC", head=head, rows=rows)


def concordance(rows: pd.DataFrame, across: str, alpha: float) -> MeanInterval:
    """Mean Kendall tau-b over pairs of levels of one factor, all others equal (draws are averaged but for their own).

    The interval is Student's t over seeds; across seeds, over the pseudo-values of the jackknife (Efron 1982).
    """
    others = [name for name in (*FIXED, "seed") if name != across]
    table = rows.groupby(["score", "settings", *others, across])["auc"].mean().unstack(["score", "settings"])
    levels = sorted(rows[across].unique())
    pairs = variance.pairs(len(levels))
    taus, seeds = [], []
    for place, part in table.groupby(level=others):
        at = part.droplevel(others)
        taus.append([kendalltau(at.loc[levels[one]], at.loc[levels[other]]).statistic for one, other in pairs])
        seeds.append(place[-1])
    if across != "seed":
        by_seed = pd.Series(taus).groupby(seeds).agg(lambda of_seed: float(np.mean(list(of_seed))))
        return paired.mean_interval(by_seed, 1 - alpha)
    pairwise = {pair: float(np.mean(of_pair)) for pair, of_pair in zip(pairs, zip(*taus, strict=True), strict=True)}
    whole, n = float(np.mean(list(pairwise.values()))), len(levels)
    if n < 3:
        return MeanInterval(n=1, mean=whole, sd=math.nan, low=math.nan, high=math.nan)
    without = [float(np.mean([tau for pair, tau in pairwise.items() if seed not in pair])) for seed in range(n)]
    pseudo = paired.mean_interval([n * whole - (n - 1) * one for one in without], 1 - alpha)
    half = pseudo.high - pseudo.mean
    return MeanInterval(n=n, mean=whole, sd=pseudo.sd, low=whole - half, high=whole + half)


def optimism_table(largest: pd.DataFrame) -> pd.DataFrame:
    """AUC at `published`, `chosen` and the `oracle`'s settings by score, signal and seed: means over arms and draws.

    For `any score` the score is chosen too, by the synthetic signal or by the oracle; it has no published one.
    """
    where = ["signal", "arm", "seed", "draw"]
    by_pilot = _best(largest.dropna(subset=["pilot_auc"]), where, "pilot_auc")
    picked = {
        "published": [largest[largest["published"]]],
        "chosen": [largest[largest["chosen"]], by_pilot.assign(score=ANY)],
        "oracle": [_best(largest, [*where, "score"], "auc"), _best(largest, where, "auc").assign(score=ANY)],
    }
    means = {name: pd.concat(rows).groupby(["score", "signal", "seed"])["auc"].mean() for name, rows in picked.items()}
    return pd.DataFrame(means).reset_index()


def _best(rows: pd.DataFrame, where: Sequence[str], by: str) -> pd.DataFrame:
    """The row with the highest value at each place, the first of equal ones."""
    return rows.loc[rows.groupby(list(where))[by].idxmax()]


def _optimism_table(found: pd.DataFrame, grid: pd.DataFrame) -> Table:
    """By score, over all signals together; and the oracle's gain for each signal."""
    heads = {name: f"oracle − chosen, {class_label(name)}" for name in ("w", "z", "t") if name in set(found["signal"])}
    counts = grid[["score", "settings"]].drop_duplicates().groupby("score").size()
    untrained = _untrained(grid)
    rows = []
    for score in [*dict.fromkeys(grid["score"]), ANY]:
        of_score = found[found["score"] == score].set_index("signal")
        own, gains = of_score[of_score.index == ALL], of_score["oracle"] - of_score["chosen"]
        rows.append(
            {
                "score": ANY if score == ANY else score_label(score),
                "settings": str(int(counts.get(score, counts.sum()))),
                "untrained, published": fmt.number(untrained.get(score, math.nan), 3),
                **{name: _mean(own[name]) for name in ("published", "chosen", "oracle")},
                "chosen − published": _mean(own["chosen"] - own["published"], sign=True),
                "oracle − chosen": _mean(gains[gains.index == ALL], sign=True),
                **{head: _mean(gains[gains.index == name], sign=True) for name, head in heads.items()},
            }
        )
    return Table.of("AUC by settings, largest bank", rows)


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


def _mean(values: pd.Series, sign: bool = False) -> str:
    found = paired.mean_interval(values.dropna())
    if found.n < 2 or not found.standard_error > 0:
        return fmt.number(found.mean, 3, sign)
    return fmt.with_error(found.mean, found.standard_error, sign, max_decimals=4)


def gap_table(study: StudyRecords, grid: pd.DataFrame) -> pd.DataFrame:
    """The gap of each encoder between its best and worst score as published, and the numbers of its geometry.

    Columns: arm, seed, trained, best, worst (names of scores), gap (of the AUC, all signals, mean over draws of the
    largest bank), and the metrics of GEOMETRY, NaN where the record has none.
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


def _geometry_table(gaps: pd.DataFrame) -> Table:
    ordered = gaps.sort_values(["trained", "arm", "seed"], ascending=[False, True, True])
    rows = [
        {
            "encoder": f"{row['arm']}, seed {row['seed']}" + ("" if row["trained"] else ", untrained"),
            "gap": fmt.number(row["gap"], 3),
            "best score": score_label(row["best"]),
            "worst score": score_label(row["worst"]),
            **{find_metric(name).label: fmt.compact(row[name]) for name in GEOMETRY},
        }
        for row in ordered.to_dict("records")
    ]
    return Table.of("Gap between scores, and geometry", rows, words=("best score", "worst score"))


def _geometry_words(models: int) -> str:
    text = (
        "The gap of an encoder is between its best and its worst score, as published, all signals together. What "
        "geometry has to do with it is drawn"
    )
    if models < MIN_MODELS:
        return (
            f"{text}, not fitted: a regression on {len(GEOMETRY)} numbers of the geometry needs at least {MIN_MODELS} "
            f"trained models, here are {models}, so none is made and a trend among the points proves nothing."
        )
    return (
        f"{text} and fitted to {models} trained models. Models of one arm are not independent, so the intervals are "
        "too short rather than too long, and a coefficient says nothing of causes."
    )


def regression_table(trained: pd.DataFrame, models: int, alpha: float) -> Table:
    """Least squares of the gap on the standardised geometry; errors of MacKinnon & White (HC3, 1985)."""
    usable = trained.dropna(subset=list(GEOMETRY))
    x = usable[list(GEOMETRY)].astype(float).assign(condition_number=np.log(usable["condition_number"].astype(float)))
    x = x.loc[:, x.std() > 0]
    fit = OLS(usable["gap"], add_constant((x - x.mean()) / x.std())).fit(cov_type="HC3")
    rows = []
    for name, (low, high) in fit.conf_int(alpha).loc[x.columns].iterrows():
        value, error = float(fit.params[name]), float(fit.bse[name])
        words = find_metric(name).label + (", logarithm" if name == "condition_number" else "")
        rows.append([words, fmt.with_error(value, error, sign=True), fmt.interval(float(low), float(high), error)])
    label = f"Gap against geometry, {len(usable)} of {models} models, adjusted R² {fit.rsquared_adj:.2f}"
    head = ["a standard deviation of", "changes the gap by", f"{fmt.level(alpha)} interval"]
    return Table(label=label, head=head, rows=rows)


def _shares_picture(found: Components) -> Picture:
    named = [(_name(key), share) for key, share in found.items()]
    alt = "Shares of the variance of the AUC. " + "; ".join(f"{name} {share:.0%}" for name, share in named) + "."
    caption = (
        "Shares of the variance of the anomaly AUC over the grid. Blue: single factors; grey: two or more together. "
        "A bank: the background jets that a score is made of."
    )
    return Picture(name="auc-shares", figure=plots.variance_shares(named), alt=alt, caption=caption)


def _scores_picture(largest: pd.DataFrame, grid: pd.DataFrame) -> Picture:
    """How far settings move each score."""
    rows = largest[largest["signal"] == ALL]
    means = rows.groupby(["score", "settings"])["auc"].mean().groupby("score").agg(["min", "max"])
    picked = optimism_table(rows).groupby("score")[["published", "chosen", "oracle"]].mean()
    drawn = means.set_axis(["low", "high"], axis=1).join(_untrained(grid).rename("untrained")).join(picked)
    drawn = drawn.loc[list(dict.fromkeys(rows["score"]))].rename(index=score_label)
    said = "; ".join(f"{one.Index} {one.low:.3f} to {one.high:.3f}" for one in drawn.itertuples())
    return Picture(
        name="auc-by-score",
        figure=plots.score_ranges(drawn),
        alt=f"AUC of all signals by score over settings: {said}.",
        caption="AUC, all signals together, largest bank, mean over encoders and draws. Bar: over all settings; marks: "
        "as published, chosen on the synthetic signal, by the oracle for each bank and encoder; grey: untrained.",
    )


def _geometry_pictures(gaps: pd.DataFrame) -> Iterator[Picture]:
    """The gap against every number of the geometry that is known."""
    words = {name: find_metric(name).label for name in GEOMETRY if gaps[name].notna().any()}
    if words:
        yield Picture(
            name="gap-geometry",
            figure=plots.against_each(gaps, words, "gap", "gap between scores", log=("condition_number",)),
            alt=f"Gap between best and worst score against {', '.join(words.values())}, a point per encoder.",
            caption="Gap between best and worst score, as published, against the geometry. Filled: trained, coloured "
            "by arm; open: untrained.",
        )
