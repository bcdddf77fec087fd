"""One door to all jets: generated, the real JetNet, or any file in its layout."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jbot.data import hdf5
from jbot.data.jetdata import DataError, JetData


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
        Processes that generate; default one a core. Has no influence on the jets.
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
    source: str,
    *,
    jets_per_class: Mapping[str, int],
    jet_pt: float = 1000.0,
    seed: int = 1,
    cache: Path | None = None,
) -> JetData | None:
    """The same jets where nothing has to be generated or downloaded, else None; parameters and errors as of `load`."""
    if source == "pythia":
        from jbot.data.chunks import load_finished
        from jbot.data.pythia import Settings

        return load_finished(jets_per_class, Settings(jet_pt=jet_pt, seed=seed), cache)
    if source == "jetnet":
        from jbot.data.jetnet import missing_files

        if missing_files(jets_per_class, cache):
            return None
    return load(source, jets_per_class=jets_per_class, cache=cache)
