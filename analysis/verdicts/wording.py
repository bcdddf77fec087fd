"""Numbers as a physicist writes them: rounded by their error, p-values never below what the design can reach."""

from __future__ import annotations

import math
import re

NOTHING = "–"
"""What stands for a number that does not exist."""


def decimals_of(error: float, most: int = 8) -> int:
    """Decimals that show an error to one digit, or to two when it starts with 1 or 2; at most `most`.

    References
    ----------
    After the Particle Data Group, Review of Particle Physics (2024), introduction, section 5.3.
    """
    if not math.isfinite(error) or error <= 0:
        return 4
    exponent = math.floor(math.log10(error))
    leading = error / 10.0**exponent
    return min(most, max(0, -exponent + (1 if leading < 3 else 0)))


def number(value: float | None, decimals: int = 4, sign: bool = False) -> str:
    """A number with a true minus sign; a dash when there is none."""
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{value:{'+' if sign else ''}.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def compact(value: float | None, digits: int = 3) -> str:
    """A number to so many significant digits, for quantities of any size."""
    if value is None or not math.isfinite(value):
        return NOTHING
    # Rounded first, so that 640 does not become 6.4e+02.
    return f"{float(f'{value:.{digits}g}'):g}".replace("-", "−")


def with_error(value: float, error: float, sign: bool = False, most: int = 8) -> str:
    """``0.021 ± 0.006``, both rounded by the error, to at most so many decimals; ``2.1e-12 ± 6e-13`` below those."""
    if _too_small(error):
        return f"{'+' if sign and value > 0 else ''}{compact(value)} ± {compact(error, 2)}"
    decimals = decimals_of(error, most)
    return f"{number(value, decimals, sign)} ± {number(error, decimals)}"


def _too_small(error: float) -> bool:
    """Whether no number of decimals that anyone would read shows it."""
    return 0 < error < 1e-8


Bounds = tuple[float, float]
SHARE = re.compile(r"(accuracy|auc|eps_s)(_[\d.]+)?(_[a-z]+)?$")
"""Metrics that are shares of something."""


def bounds(metric: str, of_difference: bool = False) -> Bounds:
    """The values a metric can take. Cutting a t interval there keeps its coverage: the truth cannot lie outside."""
    if not SHARE.search(metric.rpartition("/")[2]):
        return -math.inf, math.inf
    return (-1.0, 1.0) if of_difference else (0.0, 1.0)


def interval(low: float, high: float, error: float, within: Bounds = (-math.inf, math.inf)) -> str:
    """``0.008 to 0.034``, rounded by the error of the value it belongs to, cut at what is possible."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return NOTHING
    low, high = max(low, within[0]), min(high, within[1])
    if _too_small(error):
        return f"{compact(low)} to {compact(high)}"
    return f"{number(low, decimals_of(error))} to {number(high, decimals_of(error))}"


def p_value(p: float, floor: float = 0.0) -> str:
    """Two significant digits, one above 0.1; never below the floor of the design."""
    p = max(p, floor)
    if not math.isfinite(p):
        return NOTHING
    return f"{p:.2f}" if p >= 0.0995 else f"{p:.2g}"


METRIC = re.compile(r" on ((?:\w+/)+[\w.]+)")
"""A metric in the name of a contrast."""


def contrast(name: str) -> str:
    """The name of a contrast with a true minus sign and its metric in words."""
    words = METRIC.sub(lambda found: f" ({quantity_on(found[1]).removesuffix(' on test jets')})", name)
    return words.replace(" on test jets of ", " at ").replace(" - ", " − ")


def count(n: int, noun: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.4 h``."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


QUANTITIES = {
    "knn_accuracy": "k-NN accuracy",
    "knn_auc": "k-NN AUC",
    "linear_accuracy": "linear-probe accuracy",
    "linear_auc": "linear-probe AUC",
    "kmeans_ami": "k-means AMI",
    "silhouette": "silhouette",
    "effective_rank": "effective rank",
    "spread": "spread of the embedding",
    "nc1": "neural collapse NC1",
    "teacher_entropy": "teacher entropy",
    "student_entropy": "student entropy",
}
CLASSIFIERS = {"knn": "k-NN", "linear": "linear probe", "finetune": "fine-tuning", "supervised": "supervised twin"}
ANOMALY_SCORES = {
    "knn": "k-NN",
    "gmm": "Gaussian mixture",
    "lof": "local outlier factor",
    "mahalanobis": "Mahalanobis",
    "mahalanobis_labels": "Mahalanobis with labels",
    "relative_mahalanobis_labels": "relative Mahalanobis with labels",
}
CURVE = {
    "accuracy": "accuracy",
    "auc": "AUC",
    "eps_s": "signal efficiency at background {}",
    "rejection": "background rejection at signal efficiency {}",
    "sic": "largest significance improvement",
    "chosen_auc": "AUC at chosen settings",
    "oracle_auc": "AUC at the oracle's settings",
    "optimism": "optimism of the oracle",
}
"""Numbers of a ROC curve; {} is the cut."""
LETTERS = {"w": "W", "z": "Z", "qcd": "q/g"}
"""How classes are written where it is not as jbot.data has them."""
OF_A_CURVE = re.compile(rf"(?P<who>\w+?(_[\d.]+)?)_(?P<what>{'|'.join(CURVE)})(_(?P<cut>[\d.]+))?(_(?P<on>[a-z]+))?")

ENERGY = {"test": "test jets of {} GeV", "shifted": "test jets of {} GeV, by probes of another energy"}
"""Splits with a jet pT behind them; {} is the pT."""
SPLITS = {"test": "test jets", "val": "validation jets", "train": "training jets"}


def quantity(metric: str) -> str:
    """``k-NN accuracy`` for ``test/knn_accuracy``, ``fine-tuning on 10% of labels, AUC (t)`` for
    ``test/finetune_10_auc_t``; an unknown key in its own words."""
    name = metric.rpartition("/")[2]
    match = OF_A_CURVE.fullmatch(name)
    if name in QUANTITIES or not match:
        return QUANTITIES.get(name, name.replace("_", " "))
    what, on = CURVE[match["what"]].format(match["cut"]), LETTERS.get(match["on"], match["on"])
    if match["who"].startswith("anomaly_"):
        score = anomaly_score(match["who"].removeprefix("anomaly_"))
        return f"anomaly {what}, {score}" + (f" ({on})" if on else "")
    return f"{classifier(match['who'])}, {what}" + (f" ({on})" if on else "")


def quantity_on(metric: str) -> str:
    """``k-NN accuracy on test jets`` for ``test/knn_accuracy``, ``... of 500 GeV`` for ``test_500/...``."""
    split, _, pt = metric.split("/")[0].partition("_")
    if pt and split in ENERGY:
        return f"{quantity(metric)} on {ENERGY[split].format(pt)}"
    return f"{quantity(metric)} on {SPLITS[split]}" if split in SPLITS else quantity(metric)


def anomaly_score(name: str) -> str:
    """``Gaussian mixture`` for ``gmm``; an unknown name in its own words."""
    return ANOMALY_SCORES.get(name, name.replace("_", " "))


def classifier(name: str) -> str:
    """``fine-tuning on 10% of labels`` for ``finetune_10``; an unknown name in its own words."""
    kind, _, percent = name.rpartition("_")
    if kind in CLASSIFIERS:
        return f"{CLASSIFIERS[kind]} on {percent}% of labels"
    return CLASSIFIERS.get(name, name.replace("_", " "))


def short_classifier(name: str) -> str:
    """``fine-tuned 10%`` for ``finetune_10``, where there is little room."""
    kind, _, percent = name.rpartition("_")
    short = {"finetune": "fine-tuned", "supervised": "twin"}
    return f"{short[kind]} {percent}%" if kind in short else classifier(name)


def capitalise(text: str) -> str:
    """The first letter large, the others as they are."""
    return text[:1].upper() + text[1:]
