"""All jets through one door: generated, the real JetNet, or any file in its layout; and those of a study, by jet pT.

A trial uses the first jets of each class, whatever else its study loads: it is the same trial in a study of more jets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jbot.config import Config, digest
from jbot.data import hdf5
from jbot.data.jets import CLASSES, DataError, JetData, content_fingerprint, is_number
from jbot.data.splits import jets_needed

PT = "{pt}"
"""Stands for the jet pT in a path: ``jets/{pt}.h5``."""
STATED_PT = "jet_pt_gev"
"""Attribute by which generated files state their jet pT."""
JETNET_PT = 1000.0
"""GeV (arXiv:2106.11535)."""

Needed = dict[float, dict[str, int]]
"""Jet pT [GeV] -> class -> jets."""


def load(
    source: str,
    *,
    jets_per_class: Mapping[str, int] | int | None,
    jet_pt: float = 1000.0,
    seed: int = 1,
    workers: int | None = None,
    cache: Path | None = None,
    progress: bool = True,
    executor: Callable[..., Any] | None = None,
) -> JetData:
    """Load jets.

    Parameters
    ----------
    source : str
        "pythia" (generated, or taken from the cache), "jetnet" (the real files, downloaded when there are none), or
        a path: an .h5/.hdf5 file, or a folder holding {q,g,w,z,t}.hdf5.
    jets_per_class : mapping, int or None
        Jets of each class; a class left out is not loaded. None takes all there are, which "pythia" does not know.
    jet_pt : float
        GeV; for "pythia".
    seed : int
        For "pythia".
    workers : int, optional
        Processes that generate; default one per core. Has no influence on the jets.
    cache : Path, optional
        Cache folder; default $JBOT_CACHE or ~/.cache/jbot.
    progress : bool
        Show a bar while generating.
    executor : callable, optional
        Generates in place of processes here; see `chunks.Executor`.

    Returns
    -------
    JetData

    Raises
    ------
    DataError
        One line naming the rule, or file, dataset and row, and the value received.
    """
    if source == "pythia":
        if jets_per_class is None:
            raise DataError("source 'pythia' needs a number of jets of each class, got None")
        # Imported here: `python -m jbot.data.pythia` must not find itself imported by the package already.
        from jbot.data.chunks import load_generated
        from jbot.data.pythia import Settings

        made = Settings(jet_pt=jet_pt, seed=seed)
        how: dict[str, Any] = {"workers": workers, "cache": cache, "progress": progress, "executor": executor}
        return load_generated(jets_per_class, made, **how)
    if source == "jetnet":
        from jbot.data.jetnet import load_jetnet

        return load_jetnet(jets_per_class, cache)
    return hdf5.read(Path(source).expanduser(), jets_per_class)


def load_cached(
    source: str, *, jets_per_class: Mapping[str, int], jet_pt: float = 1000.0, cache: Path | None = None
) -> JetData | None:
    """The same jets where nothing has to be generated or downloaded, else None; parameters and errors as of `load`."""
    if source == "pythia":
        from jbot.data.chunks import load_finished
        from jbot.data.pythia import Settings

        return load_finished(jets_per_class, Settings(jet_pt=jet_pt), cache)
    if source == "jetnet":
        from jbot.data.jetnet import missing_files

        if missing_files(jets_per_class, cache):
            return None
    return load(source, jets_per_class=jets_per_class, cache=cache)


# --- jets of a study, by jet pT -------------------------------------------------------------------------------------


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
            self._known[key] = content_fingerprint(data.particles, data.labels, data.jets, rows=np.concatenate(rows))
        return self._known[key]


def jets_used(config: Config) -> Needed:
    """Jets of each class that a trial uses or sets aside: at its own pT, and where it is evaluated besides."""

    def of(train_jets: int) -> dict[str, int]:
        data = config.data
        return jets_needed(**data.sizes | {"train": train_jets})

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
    """Load, generate or download the jets that are `needed`, see :func:`needed_by`; options as for :func:`load`.

    A path may hold ``{pt}``, which stands for the jet pT. Raises DataError as :func:`load` does, and when one file, or
    JetNet, is to give several pTs or another one than its own.
    """
    return Jets(dict(_by_pt(source, needed, load, **how)))


def cached_jets(source: str, needed: Needed, cache: Path | None = None) -> Jets | None:
    """The same where nothing has to be generated or downloaded, else None."""
    cached: dict[float, JetData] = {}
    for pt, data in _by_pt(source, needed, load_cached, cache=cache):
        if data is None:
            return None
        cached[pt] = data
    return Jets(cached)


def gev(pts: Iterable[float]) -> str:
    """``500, 1000 GeV``."""
    return f"{', '.join(f'{pt:g}' for pt in pts)} GeV"


def _by_pt(source: str, needed: Needed, load: Callable[..., Any], **how: Any) -> Iterator[tuple[float, Any]]:
    """Load the jets of each pT from its source, and see to it that they do not state another one."""
    pts = list(needed)
    if source == "jetnet" and pts != [JETNET_PT]:
        raise DataError(f"jetnet has jets of {JETNET_PT:g} GeV, needed are jets of {gev(pts)}")
    if source != "pythia" and PT not in source and len(pts) > 1:
        raise DataError(
            f"jets of {gev(pts)} are needed: --data must be pythia or a path with {PT} in it, got {source!r}"
        )
    for pt, counts in needed.items():
        path = source if source == "pythia" else source.replace(PT, f"{pt:g}")
        data = load(path, jets_per_class=counts, jet_pt=pt, **how)
        stated = data.metadata.items() if data else ()
        if other := [value for key, value in stated if key.split(": ")[-1] == STATED_PT and not is_number(value, pt)]:
            raise DataError(f"{data.source}: holds jets of {other[0]} GeV, needed are jets of {pt:g} GeV (data.jet_pt)")
        yield pt, data


def _joined(fingerprints: Mapping[float, str]) -> str:
    """One fingerprint of the jets of several pTs; of one, its own."""
    if len(fingerprints) == 1:
        return next(iter(fingerprints.values()))
    return digest({f"{pt:g}": one for pt, one in fingerprints.items()}, length=64)
