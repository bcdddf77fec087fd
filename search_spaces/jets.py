"""Axes of the jets themselves."""

from search_spaces.axis import Axis

JET_PT = Axis(
    field="data.jet_pt",
    values=(500.0, 1000.0, 2000.0),
    reason="a factor of two to either side of the paper's 1 TeV: particles get closer by as much, and harder. The "
    "generator goes from 200 to 5000 GeV",
)
