"""Numbers as a physicist writes them: rounded by their error, p-values never below what the design can reach; lists."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from analysis.stats import paired
from analysis.stats.paired import MeanInterval

MISSING = "–"
"""What stands for a number that does not exist."""
LARGE = 1e6
"""From here on a number is written 2.1e9."""
TINY = 1e-8
"""An error that no number of decimals that anyone would read shows."""


def decimals_of(error: float, max_decimals: int = 8) -> int:
    """Decimals that show an error to one digit, or to two when it starts with 1 or 2; at most `max_decimals`.

    References
    ----------
    After the Particle Data Group, Review of Particle Physics (2024), introduction, section 5.3.
    """
    if not math.isfinite(error) or error <= 0:
        return 4
    exponent = math.floor(math.log10(error))
    leading = error / 10.0**exponent
    return min(max_decimals, max(0, -exponent + (1 if leading < 3 else 0)))


def number(value: float | None, decimals: int = 4, sign: bool = False) -> str:
    """A number with a true minus sign; a dash when there is none."""
    if value is None or not math.isfinite(value):
        return MISSING
    if abs(value) >= LARGE:
        return f"{'+' if sign and value > 0 else ''}{compact(value)}"
    text = f"{value:{'+' if sign else ''}.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def compact(value: float | None, digits: int = 3) -> str:
    """A number to so many significant digits, for quantities of any size."""
    if value is None or not math.isfinite(value):
        return MISSING
    # Rounded first, so that 640 does not become 6.4e+02.
    return f"{float(f'{value:.{digits}g}'):g}".replace("e+0", "e").replace("e+", "e").replace("-", "−")


def with_error(value: float, error: float, sign: bool = False, max_decimals: int = 8) -> str:
    """``0.021 ± 0.006``, both rounded by the error, to at most so many decimals; ``2.1e-12 ± 6e-13`` below those."""
    if 0 < error < TINY:
        return f"{'+' if sign and value > 0 else ''}{compact(value)} ± {compact(error, 2)}"
    decimals = decimals_of(error, max_decimals)
    return f"{number(value, decimals, sign)} ± {number(error, decimals)}"


def interval(low: float, high: float, error: float, within: tuple[float, float] = (-math.inf, math.inf)) -> str:
    """``0.008 to 0.034``, rounded by the error of the value it belongs to, cut at what is possible."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return MISSING
    low, high = max(low, within[0]), min(high, within[1])
    if 0 < error < TINY:
        return f"{compact(low)} to {compact(high)}"
    return f"{number(low, decimals_of(error))} to {number(high, decimals_of(error))}"


def p_value(p: float, min_p: float = 0.0) -> str:
    """Two significant digits, one above 0.1; never below the smallest that the design can reach."""
    p = max(p, min_p)
    if not math.isfinite(p):
        return MISSING
    return f"{p:.2f}" if p >= 0.0995 else f"{p:.2g}"


def level(alpha: float) -> str:
    """``95%``: 1 minus an error level of two digits, so that 0.995 is not written 100%."""
    return f"{100 - float(f'{100 * alpha:.2g}'):g}%"


def count(n: int, noun: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.4 h``."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def capitalise(text: str) -> str:
    """The first letter large, the others as they are."""
    return text[:1].upper() + text[1:]


def mean_cell(values: MeanInterval, sign: bool = False) -> str:
    """``0.021 ± 0.006``: mean and standard error; the mean alone where there is no spread."""
    if values.n < 2 or values.standard_error == 0:
        return number(values.mean, sign=sign)
    return with_error(values.mean, values.standard_error, sign)


def mean_cells(means: Sequence[MeanInterval]) -> list[str]:
    """Cells of one column, all rounded by the median of their errors."""
    errors = [one.standard_error for one in means if one.n > 1 and one.standard_error > 0]
    if not errors or (typical := median(errors)) < TINY:
        return [mean_cell(one) for one in means]
    decimals, cells = decimals_of(typical), []
    for one in means:
        error = number(one.standard_error, decimals)
        error = compact(one.standard_error, 1) if one.standard_error > 0 and float(error) == 0 else error
        cells.append(number(one.mean, decimals) + (f" ± {error}" if one.n > 1 else ""))
    return cells


def interval_cell(values: MeanInterval) -> str:
    """``0.008 to 0.034``."""
    return interval(values.low, values.high, values.standard_error)


def p_cell(p_adjusted: float, n: int) -> str:
    """A corrected p, never below what n seeds can reach; a dash without a test."""
    return p_value(p_adjusted, paired.min_p(n)) if math.isfinite(p_adjusted) else MISSING


def listed(names: Sequence[str], most: int = 8) -> str:
    """``a, b and c``; of more than `most` the first ones."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def value_words(value: Any) -> str:
    """A setting in few letters."""
    return compact(value, 4) if isinstance(value, float) else str(value)
