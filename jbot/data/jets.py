"""The jets of a study, by jet pT, and which of them a trial uses.

A trial uses the first jets of each class, whatever else its study loads: it is the same trial in a study of more jets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jbot.config import Config, digest
from jbot.data.jetdata import CLASSES, DataError, JetData, rows_fingerprint
from jbot.data.load import load, load_cached
from jbot.data.splits import jets_needed

PT = "{pt}"
"""Stands for the jet pT in a path: ``jets/{pt}.h5``."""
STATED_PT = "jet_pt_gev"
"""Attribute by which generated files state their jet pT."""
JETNET_PT = 1000.0
"""GeV (arXiv:2106.11535)."""

Needed = dict[float, dict[str, int]]
"""Jet pT [GeV] -> class -> jets."""


class Jets(Mapping[float, JetData]):
    """Jet pT [GeV] -> its jets; one entry in the ordinary case."""

    def __init__(self, by_pt: Mapping[float, JetData]):
        self._by_pt = {float(pt): by_pt[pt] for pt in sorted(by_pt)}
        self._known: dict[Any, str] = {}

    def __getitem__(self, pt: float) -> JetData:
        return self._by_pt[pt]

    def __iter__(self) -> Iterator[float]:
        return iter(self._by_pt)

    def __len__(self) -> int:
        return len(self._by_pt)

    @property
    def source(self) -> str:
        """One readable line."""
        return "; ".join(f"{data.source}, {len(data.labels):,} jets" for data in self.values())

    @property
    def whole(self) -> str:
        """Fingerprint of all jets there are, for the study."""
        return _joined({pt: data.fingerprint for pt, data in self.items()})

    def at(self, pt: float) -> JetData:
        """The jets of a pT.

        Raises
        ------
        DataError
            When there are none.
        """
        if pt not in self:
            raise DataError(f"jets of {pt:g} GeV are needed, there are those of {gev(self)}")
        return self[pt]

    def fingerprint(self, config: Config) -> str:
        """sha256 (hex) of the jets that a trial of this Config uses, whatever else is loaded."""
        return _joined({pt: self._first(pt, counts) for pt, counts in sorted(jets_used(config).items())})

    def source_of(self, config: Config) -> str:
        """Where the jets that a trial uses come from."""
        return "; ".join(self.at(pt).source for pt in sorted(jets_used(config)))

    def _first(self, pt: float, counts: Mapping[str, int]) -> str:
        """Fingerprint of the first jets of each class of one pT: that of a JetData of these jets alone."""
        key = (pt, *counts.items())
        if key not in self._known:
            data = self.at(pt)
            rows = [np.flatnonzero(data.labels == CLASSES.index(name))[:count] for name, count in counts.items()]
            self._known[key] = rows_fingerprint(np.concatenate(rows), data.particles, data.labels, data.jets)
        return self._known[key]


def jets_used(config: Config) -> Needed:
    """Jets of each class that a trial uses or sets aside: at its own pT, and where it is judged besides."""

    def of(train_jets: int) -> dict[str, int]:
        data = config.data
        return jets_needed(task=data.task, train=train_jets, val=data.val_jets, test=data.test_jets)

    return dict.fromkeys(config.probe.jet_pts, of(config.bank_jets)) | {config.data.jet_pt: of(config.data.set_aside)}


def needed_by(configs: Iterable[Config]) -> Needed:
    """Jets that trials need: at each pT, of each class as many as the trial that wants most."""
    needed: Needed = {}
    for config in configs:
        for pt, counts in jets_used(config).items():
            most = needed.setdefault(pt, {})
            most |= {name: max(count, most.get(name, 0)) for name, count in counts.items()}
    return dict(sorted(needed.items()))


def load_jets(source: str, needed: Needed, **how: Any) -> Jets:
    """Load, generate or download jets.

    Parameters
    ----------
    source : str
        As for :func:`jbot.data.load`; a path may hold ``{pt}``, which stands for the jet pT.
    needed : mapping
        As :func:`needed_by` says.
    how
        Further options of :func:`jbot.data.load`.

    Raises
    ------
    DataError
        One line; also when one file, or JetNet, is to give several pTs or another one than its own.
    """
    places = _places(source, needed)
    return Jets({pt: _of_pt(pt, load(places[pt], jets_per_class=needed[pt], jet_pt=pt, **how)) for pt in needed})


def cached_jets(source: str, needed: Needed, cache: Path | None = None) -> Jets | None:
    """The same where nothing has to be generated or downloaded, else None."""
    places = _places(source, needed)
    found: dict[float, JetData] = {}
    for pt, counts in needed.items():
        data = load_cached(places[pt], jets_per_class=counts, jet_pt=pt, cache=cache)
        if data is None:
            return None
        found[pt] = _of_pt(pt, data)
    return Jets(found)


def gev(pts: Iterable[float]) -> str:
    """``500, 1000 GeV``."""
    return f"{', '.join(f'{pt:g}' for pt in pts)} GeV"


def _places(source: str, pts: Iterable[float]) -> dict[float, str]:
    """The source of each pT."""
    pts = list(pts)
    if source == "jetnet" and pts != [JETNET_PT]:
        raise DataError(f"jetnet has jets of {JETNET_PT:g} GeV, needed are jets of {gev(pts)}")
    if source != "pythia" and PT not in source and len(pts) > 1:
        raise DataError(
            f"jets of {gev(pts)} are needed: --data must be pythia or a path with {PT} in it, got {source!r}"
        )
    return {pt: source if source == "pythia" else source.replace(PT, f"{pt:g}") for pt in pts}


def _of_pt(pt: float, data: JetData) -> JetData:
    """The same jets, unless they state another pT."""
    stated = [value for key, value in data.metadata.items() if key.split(": ")[-1] == STATED_PT]
    if other := [value for value in stated if value != f"{pt:g}"]:
        raise DataError(f"{data.source}: holds jets of {other[0]} GeV, needed are jets of {pt:g} GeV (data.jet_pt)")
    return data


def _joined(fingerprints: Mapping[float, str]) -> str:
    """One fingerprint of the jets of several pTs; of one, its own."""
    if len(fingerprints) == 1:
        return next(iter(fingerprints.values()))
    return digest({f"{pt:g}": one for pt, one in fingerprints.items()}, length=64)
