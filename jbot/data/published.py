"""Published figures of the real JetNet jets (30 particles, 1 TeV; arXiv:2106.11535), and what our recipe misses.

The known gaps come from 22,000 jets a class made with the recipe of `jbot.data.pythia` by independent code: W and Z
jets have pT 0.5% low, and the tails of the W mass are a little wide.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures of one class of jets."""

    pt_mean: float
    """GeV"""
    pt_sd: float
    """GeV"""
    mass_mean: float
    """GeV"""
    mass_sd: float
    """GeV"""
    n_mean: float
    """Valid particles a jet, at most 30."""
    eta_spread: float
    """Standard deviation of eta_rel over valid particles."""
    phi_spread: float
    """Standard deviation of phi_rel [rad] over valid particles."""


REAL = {
    "q": Figures(
        pt_mean=1019, pt_sd=91, mass_mean=58.9, mass_sd=35.3, n_mean=27.40, eta_spread=0.0925, phi_spread=0.0904
    ),
    "g": Figures(
        pt_mean=1133, pt_sd=197, mass_mean=95.9, mass_sd=47.8, n_mean=29.89, eta_spread=0.0776, phi_spread=0.0764
    ),
    "w": Figures(
        pt_mean=1041, pt_sd=67, mass_mean=79.7, mass_sd=11.6, n_mean=28.88, eta_spread=0.0779, phi_spread=0.0774
    ),
    "z": Figures(
        pt_mean=1041, pt_sd=65, mass_mean=89.1, mass_sd=13.9, n_mean=29.03, eta_spread=0.0838, phi_spread=0.0835
    ),
    "t": Figures(
        pt_mean=995, pt_sd=90, mass_mean=145.4, mass_sd=36.8, n_mean=29.94, eta_spread=0.1161, phi_spread=0.1170
    ),
}
"""The real jets, about 177,000 a class."""

KNOWN_GAP = {
    "q": Figures(pt_mean=2, pt_sd=0, mass_mean=1.3, mass_sd=0.5, n_mean=0.15, eta_spread=0.0013, phi_spread=0.0004),
    "g": Figures(pt_mean=8, pt_sd=2, mass_mean=0.9, mass_sd=0.2, n_mean=0.01, eta_spread=0.0002, phi_spread=0.0008),
    "w": Figures(pt_mean=4, pt_sd=1, mass_mean=0.3, mass_sd=1.5, n_mean=0.12, eta_spread=0.0021, phi_spread=0.0021),
    "z": Figures(pt_mean=7, pt_sd=1, mass_mean=1.0, mass_sd=0.5, n_mean=0.21, eta_spread=0.0008, phi_spread=0.0010),
    "t": Figures(pt_mean=1, pt_sd=1, mass_mean=1.3, mass_sd=0.3, n_mean=0.01, eta_spread=0.0007, phi_spread=0.0006),
}
"""|recipe - real| for each figure."""

ROUNDING = Figures(
    pt_mean=0.5, pt_sd=0.5, mass_mean=0.05, mass_sd=0.05, n_mean=0.005, eta_spread=0.0005, phi_spread=0.0005
)
"""Half the last digit published; for the spreads, 0.5% (assumed)."""

BELOW_30 = {"q": 0.35, "g": 0.02, "w": 0.20, "z": 0.15, "t": 0.01}
"""Share of jets with fewer than 30 particles: the recipe's, not published for the real jets."""

REAL_MIN_N = {"q": 6, "g": 7, "w": 6, "z": 5, "t": 11}
"""Fewest particles of any real jet."""

REAL_MAX_PT_REL = 0.8935
"""Largest pt_rel of any real particle."""
