"""Jets by physics: proton collisions by Pythia, a fast detector, jets by FastJet.

JetNet's jets rebuilt at any jet pT and any number. Settings marked "fitted" were adjusted to published figures of
JetNet (arXiv:2106.11535) at 1 TeV, never to the jets themselves; `python -m jbot.data.validate FILE` holds a sample
against those figures. This file is the physics of one batch of events; `chunks` runs it in parallel and caches it, and
`generate` is its command.

pythia8mc, fastjet and awkward (GPL-2.0-or-later) are the extra [pythia], imported here alone and only when used.
"""

import importlib
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from jbot.data.detector import Particles, simulate
from jbot.data.jets import N_PARTICLES, DataError

RECIPE = 1
"""Version of the physics below; raise it with any change that changes jets, so that cached jets are made again."""
BATCH = 50
"""Events generated at once. Other batch sizes give other jets of the same physics."""

COMMON_CARD = (
    "Print:quiet = on",
    "Beams:eCM = 13000",
    "Check:event = off",
    "Random:setSeed = on",
    "23:onMode = off",  # W and Z decay to quarks only, in top decays too
    "23:onIfAny = 1 2 3 4 5",
    "24:onMode = off",
    "24:onIfAny = 1 2 3 4 5",
)
"""Everything else is Pythia's default: Monash tune, multiparton interactions, initial and final state radiation."""

PROCESS_CARDS = {
    "q": ("HardQCD:gg2qqbar = on", "HardQCD:qq2qq = on", "HardQCD:qqbar2qqbarNew = on"),
    "g": ("HardQCD:gg2gg = on", "HardQCD:qqbar2gg = on"),
    "w": ("WeakDoubleBoson:ffbar2WW = on", "24:mMin = 80.40", "24:mMax = 80.44"),
    "z": (
        "WeakDoubleBoson:ffbar2gmZgmZ = on",
        "WeakZ0:gmZmode = 2",  # Z alone, no virtual photon
        "23:mMin = 91.17",
        "23:mMax = 91.21",
    ),
    "t": ("Top:gg2ttbar = on", "Top:qqbar2ttbar = on", "6:mMin = 172.98", "6:mMax = 173.02"),
}
"""Hard processes; the mass windows put produced W, Z and t on shell (fitted)."""

PT_WINDOW = 1.01
"""Hard-process pT lies in [p, 1.01 p] (fitted)."""
OPEN_PT_CLASSES = ("g",)
"""Classes whose hard-process pT has no upper bound (fitted: JetNet's gluon jets have pT 1133 +- 197 GeV)."""
POLARISATION = {"w": (24, 0.426), "z": (23, 1.0)}
"""Class -> (boson, a): decays are accepted with 1 / (1 + a cos^2 theta), which removes most or all of the
polarisation (fitted at 1 TeV)."""

RADIUS_AT_1TEV = 0.4
"""anti-kT radius of JetNet's jets."""
JET_PT_RANGE = (200.0, 5000.0)
"""GeV; outside it jets are wider than the calorimeter or beyond the beams' reach."""
MMDT_ZCUT = 0.1
"""Modified mass drop tagger: C/A, beta 0 (arXiv:1307.0007). A jet needs two constituents after it (fitted)."""
MIN_LEADING_PT = 0.1
"""Jets below this share of the hard-process pT are not looked at: the leading jet is far above."""

CITATIONS = {
    "Pythia": "C. Bierlich et al., A comprehensive guide to the physics and usage of PYTHIA 8.3, arXiv:2203.11601",
    "FastJet": "M. Cacciari, G. P. Salam, G. Soyez, FastJet user manual, arXiv:1111.6097",
    "JetNet": "R. Kansal et al., Particle cloud generation with message passing GANs (JetNet), arXiv:2106.11535",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that decides the jets, apart from how many."""

    jet_pt: float = 1000.0
    """Parton transverse momentum p [GeV]."""
    radius: float | None = None
    """anti-kT radius; None means 0.4 * (1 TeV / p), which keeps a W or top equally contained at every pT."""
    seed: int = 1
    """Any integer >= 0."""

    def __post_init__(self) -> None:
        low, high = JET_PT_RANGE
        if not low <= self.jet_pt <= high:
            raise DataError(f"jet pT must lie in [{low:g}, {high:g}] GeV, got {self.jet_pt:g}")
        if self.radius is not None and not 0 < self.radius <= np.pi / 2:
            raise DataError(f"jet radius must lie in (0, pi/2], got {self.radius:g}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int | np.integer) or self.seed < 0:
            raise DataError(f"seed must be an integer >= 0, got {self.seed!r}")

    @property
    def jet_radius(self) -> float:
        """The radius used."""
        return RADIUS_AT_1TEV * 1000.0 / self.jet_pt if self.radius is None else self.radius

    def describe(self) -> dict[str, str]:
        """Everything that decides the jets, as text: the cache's key and the file's attributes."""
        return {
            "jet_pt_gev": f"{self.jet_pt:g}",
            "radius": f"{self.jet_radius:g}",
            "seed": str(self.seed),
            "recipe": str(RECIPE),
            "batch": str(BATCH),
            **generator_versions(),
        }


def generator_versions() -> dict[str, str]:
    """Versions of the two packages whose other versions would make other jets."""
    return {package: installed_version(package) for package in ("pythia8mc", "fastjet")}


def installed_version(package: str) -> str:
    """Version of a package of the extra [pythia]; DataError with the way to install it when it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        raise DataError(_missing(package)) from None


def _missing(package: str) -> str:
    return f"generating jets needs {package}: pip install 'jbot-studies[pythia]' (Python 3.11 or 3.12)"


def _optional(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DataError(_missing(module)) from None


# --- jets of one seed ---------------------------------------------------------------------------------------------


def generate(
    name: str, n_jets: int, settings: Settings, seeds: np.random.SeedSequence
) -> tuple[np.ndarray, np.ndarray, int]:
    """Generate jets of one class.

    Parameters
    ----------
    n_jets : int
        Jets to make. A smaller number gives the first of a larger number's jets.
    seeds : SeedSequence
        Feeds Pythia, the detector and the decays, each with its own stream; the seed of `settings` is not used.

    Returns
    -------
    particles : (jet, 30, 4) float32
        eta_rel, phi_rel [rad], pt_rel, mask; sorted by pT.
    jets : (jet, 4) float32
        pT [GeV], eta, mass [GeV], number of particles kept.
    events : int
        Events generated for them; one event gives at most one jet, its leading one.
    """
    pythia_seed, detector_seed, decay_seed = seeds.spawn(3)
    pythia, _hook = start_pythia(name, settings, pythia_seed, np.random.default_rng(decay_seed))
    detector_rng = np.random.default_rng(detector_seed)
    batches: list[tuple[np.ndarray, np.ndarray]] = []
    events = 0
    while sum(len(jets) for _, jets in batches) < n_jets:
        particles, pdg_id = final_state(pythia.nextBatch(BATCH))
        measured = simulate(particles, pdg_id, detector_rng)
        batches.append(jet_features(*leading_jets(measured, settings)))
        events += BATCH
    particle_rows, jet_rows = (np.concatenate(arrays)[:n_jets] for arrays in zip(*batches, strict=True))
    return particle_rows, jet_rows, events


def start_pythia(
    name: str, settings: Settings, seed: np.random.SeedSequence, decay_rng: np.random.Generator
) -> tuple[Any, Any]:
    """Pythia for one class, and its hook. Keep both: Pythia holds no reference to a Python hook."""
    pythia8 = _optional("pythia8mc")
    pythia = pythia8.Pythia("", False)
    number = int(seed.generate_state(1)[0]) % 900_000_000 + 1  # Pythia takes 1 to 900,000,000
    for line in (*card(name, settings.jet_pt), f"Random:seed = {number}"):
        if not pythia.readString(line):
            raise DataError(f"Pythia refused the setting {line!r}")
    hook = None
    if name in POLARISATION:
        hook = unpolarised_decays(pythia8, *POLARISATION[name], decay_rng)
        pythia.setUserHooksPtr(hook)
    if not pythia.init():
        raise DataError(f"Pythia could not start for class {name} at {settings.jet_pt:g} GeV")
    return pythia, hook


def card(name: str, jet_pt: float) -> tuple[str, ...]:
    """Pythia settings of a class at this parton pT [GeV]."""
    window = [f"PhaseSpace:pTHatMin = {jet_pt:.10g}"]
    if name not in OPEN_PT_CLASSES:
        window.append(f"PhaseSpace:pTHatMax = {PT_WINDOW * jet_pt:.10g}")
    return (*COMMON_CARD, *window, *PROCESS_CARDS[name])


def unpolarised_decays(pythia8: Any, boson: int, a: float, rng: np.random.Generator) -> Any:
    """A Pythia hook that draws boson pairs' decays again until one is accepted with 1 / (1 + a cos^2 theta) each."""

    class UnpolarisedDecays(pythia8.UserHooks):
        def canVetoResonanceDecays(self) -> bool:  # noqa: N802
            return True

        def doVetoResonanceDecays(self, process: Any) -> bool:  # noqa: N802
            accepted = np.prod([1 / (1 + a * cosine**2) for cosine in helicity_cosines(process, boson)])
            return bool(rng.random() > accepted)

    return UnpolarisedDecays()


def helicity_cosines(process: Any, boson: int) -> Iterator[float]:
    """Decay angle of each boson of a pair: in its rest frame, between a quark and the boson's line of flight.

    The line of flight is the direction opposite the other boson. The sign is left out: it is used squared.
    """
    first, second = (process[i] for i in range(process.size()) if process[i].idAbs() == boson)
    for own, other in ((first, second), (second, first)):
        quark, recoil = process[own.daughter1()].p(), other.p()
        quark.bstback(own.p())
        recoil.bstback(own.p())
        scalar = quark.px() * recoil.px() + quark.py() * recoil.py() + quark.pz() * recoil.pz()
        yield scalar / (quark.pAbs() * recoil.pAbs())


def final_state(batch: Any) -> tuple[Particles, np.ndarray]:
    """Final-state particles of a batch of events and their PDG ids (particle,)."""
    ak = _optional("awkward")
    counts = ak.to_numpy(ak.num(batch.prt.id))
    record = ak.flatten(batch.prt)
    final = ak.to_numpy(record.status) > 0
    momentum = record.p
    p4 = np.stack([ak.to_numpy(momentum[key])[final] for key in ("px", "py", "pz", "e")], axis=1)
    event = np.repeat(np.arange(len(counts)), counts)[final]
    return Particles(event, p4), ak.to_numpy(record.id)[final]


# --- jets ---------------------------------------------------------------------------------------------------------


def leading_jets(measured: Particles, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Find the leading anti-kT jet of each event and keep it when mMDT leaves two constituents.

    Returns
    -------
    p4 : (constituent, 4) float64
        Constituents of all jets, jet after jet; px, py, pz, E [GeV].
    counts : (jet,) int
        Constituents of each jet.
    """
    ak, fastjet, axes = _optional("awkward"), _optional("fastjet"), ("px", "py", "pz", "E")
    order, in_event = np.argsort(measured.event, kind="stable"), np.bincount(measured.event)
    columns = dict(zip(axes, np.ascontiguousarray(measured.p4[order].T), strict=True))
    events = ak.unflatten(ak.zip(columns, with_name="Momentum4D"), in_event[in_event > 0])  # (event, particle)
    min_pt = MIN_LEADING_PT * settings.jet_pt
    fastjet._swig.ClusterSequence.set_fastjet_banner_stream(None)  # cited in each file instead
    clusters = fastjet.ClusterSequence(events, fastjet.JetDefinition(fastjet.antikt_algorithm, settings.jet_radius))
    candidates = clusters.inclusive_jets(min_pt)
    leading = ak.argmax(candidates.px**2 + candidates.py**2, axis=1, keepdims=True)
    members = ak.flatten(ak.drop_none(clusters.constituent_index(min_pt)[leading]), axis=1)
    has_jet = ak.num(candidates.px) > 0
    jets = ak.to_packed(events[has_jet][members])
    jets = jets[survives_mmdt(jets, settings.jet_radius)]
    flat = ak.flatten(jets)
    return np.stack([ak.to_numpy(flat[key]) for key in axes], axis=1), ak.to_numpy(ak.num(jets.px))


def survives_mmdt(jets: Any, radius: float) -> np.ndarray:
    """Whether mMDT leaves at least two constituents of each jet, (jet,) bool; `jets` (jet, constituent) in awkward.

    Grooming is slow and most jets need none: a branch with 0.1 of the summed pT of the whole jet has at least that
    share of its own splitting (a subjet's pT is at most the sum of its constituents'), so mMDT stops there or before.
    """
    ak, fastjet = _optional("awkward"), _optional("fastjet")
    clusters = fastjet.ClusterSequence(jets, fastjet.JetDefinition(fastjet.cambridge_algorithm, np.pi))
    splittings = clusters.exclusive_jets_lund_declusterings(1)
    softer_pt = ak.flatten(splittings.kt / splittings.Delta, axis=2)  # (jet, splitting)
    pt_sum = ak.sum(np.hypot(jets.px, jets.py), axis=1)
    survives = ak.to_numpy(ak.fill_none(ak.max(softer_pt, axis=1) >= MMDT_ZCUT * pt_sum, False)).copy()
    unsure = np.flatnonzero(~survives)
    if len(unsure):
        survives[unsure] = groomed_counts(ak.to_packed(jets[unsure]), radius) >= 2
    return survives


def groomed_counts(jets: Any, radius: float) -> np.ndarray:
    """Constituents that mMDT leaves of each jet, (jet,) int; the radius has no influence at beta 0."""
    ak, fastjet = _optional("awkward"), _optional("fastjet")
    clusters = fastjet.ClusterSequence(jets, fastjet.JetDefinition(fastjet.cambridge_algorithm, np.pi))
    groomed = clusters.exclusive_jets_softdrop_grooming(njets=1, beta=0.0, symmetry_cut=MMDT_ZCUT, R0=radius)
    return ak.to_numpy(ak.num(groomed.constituents.px))


def jet_features(p4: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """JetNet's features from constituents.

    Parameters
    ----------
    p4 : (constituent, 4) float64
        px, py, pz, E [GeV], jet after jet.
    counts : (jet,) int
        Constituents of each jet, at least one.

    Returns
    -------
    particles : (jet, 30, 4) float32
        eta_rel = eta - eta of the jet (pseudorapidities), phi_rel in [-pi, pi), pt_rel = pT / pT of the jet, mask;
        the 30 leading particles by pT, padded with zeros.
    jets : (jet, 4) float32
        pT, eta, mass of all constituents; min(constituents, 30).
    """
    jet = np.repeat(np.arange(len(counts)), counts)
    axis = Particles(np.arange(len(counts)), np.add.reduceat(p4, np.cumsum(counts) - counts, axis=0))
    constituents = Particles(jet, p4)
    features = np.stack(
        [
            constituents.eta - axis.eta[jet],
            np.mod(constituents.phi - axis.phi[jet] + np.pi, 2 * np.pi) - np.pi,
            constituents.pt / axis.pt[jet],
            np.ones(len(jet)),
        ],
        axis=1,
    )
    order = np.lexsort((-constituents.pt, jet))
    rank = np.arange(len(jet)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = order[rank < N_PARTICLES]
    particles = np.zeros((len(counts), N_PARTICLES, 4), np.float32)
    particles[jet[kept], rank[rank < N_PARTICLES]] = features[kept]
    mass = np.sqrt(np.maximum(axis.p4[:, 3] ** 2 - np.sum(axis.p4[:, :3] ** 2, axis=1), 0.0))
    jets = np.stack([axis.pt, axis.eta, mass, np.minimum(counts, N_PARTICLES)], axis=1)
    return particles, jets.astype(np.float32)


if __name__ == "__main__":  # the command's address of before
    runpy.run_module("jbot.data.generate", run_name="__main__")
