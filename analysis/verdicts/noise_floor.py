"""The noise floor of a study: how far an arm lies from itself, initial weights changed by one part in a million.

Trials at one seed share weights, order and noise, but training amplifies rounding: where it is chaotic, arms at the
same seed are as far apart as any, and a change that does nothing moves the metric as much as one that does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.verdicts import number_format as fmt
from analysis.verdicts.sentences import contrast_name
from analysis.verdicts.verdict import Verdict


def sentences(verdicts: Sequence[Verdict]) -> list[str]:
    """What the null says of the study, and which primary differences lie within it; empty without a null."""
    floor = next((verdict for verdict in verdicts if verdict.null), None)
    if floor is None or floor.difference.n < 2:
        return []
    d, control = floor.difference, floor.contrast.control
    itself = f"{control} against itself, initial weights changed by one part in a million,"
    if d.mean == 0 and d.sd == 0:
        return [f"{itself} scores the same at all {d.n} seeds: so short a training does not amplify rounding."]
    said = [
        f"{itself} differs by {fmt.with_error(d.mean, d.standard_error, sign=True)} "
        f"({fmt.interval(d.low, d.high, d.standard_error, floor.within)}, n = {d.n} seeds), "
        f"{fmt.compact(d.sd, 2)} from seed to seed. The same seed on another kind of CPU agrees to no better than that."
    ]
    if floor.outcome in ("better", "worse"):
        said.append(
            "The null itself comes out different, which it is not: distrust the other verdicts, and take more seeds."
        )
    reach = float(np.nanmax([abs(d.low), abs(d.high)]))
    within = [v for v in verdicts if v.contrast.primary and v.difference.n > 1 and abs(v.difference.mean) <= reach]
    if within:
        names = fmt.listed([contrast_name(verdict.contrast.name) for verdict in within])
        said.append(f"No larger than what chance alone makes of that null (up to {fmt.compact(reach, 2)}): {names}.")
    return said
