"""Does an encoder pre-trained on jets of one energy serve jets of another?

Source   arXiv:2601.11719 trains and tests on jets of 1 TeV alone.
Design   An arm is the jet pT of pre-training; each frozen encoder is evaluated at all three, with probes refitted there
         (test_<pt>/...) and with those of its own pT (shifted_<pt>/...). At each pT the encoder pre-trained there is
         the control: same test jets, probes and initial weights. The cone goes as 1/pT, so the boosted W, Z and t stay
         as contained as at 1 TeV, and angles shrink as pT grows.
Command  python studies/cross_energy.py                            (docs/studies/cross_energy.md says what it takes)
         python studies/cross_energy.py --preset gpu
         python studies/cross_energy.py --data 'jets/{pt}.h5'      your own files, one a pT
Read     The verdicts on pre_500 and pre_2000 at 1 TeV: "equivalent" means that pre-training transfers up, or down.
"""

from search_spaces.jets import JET_PT
from studies import Contrast, Study, main

AT_500, AT_1000, AT_2000 = (f"test_{pt:g}/knn_accuracy" for pt in JET_PT.values)

study = Study(
    name="cross_energy",
    question="Does an encoder pre-trained on jets of one energy serve jets of another?",
    base={"probe.jet_pts": JET_PT.values},
    arms={f"pre_{pt:g}": JET_PT.arm(pt) for pt in JET_PT.values},
    contrasts=(
        Contrast(treatment="pre_500", control="pre_1000", primary=True, metric=AT_1000),
        Contrast(treatment="pre_2000", control="pre_1000", primary=True, metric=AT_1000),
        Contrast(treatment="pre_1000", control="pre_500", metric=AT_500),
        Contrast(treatment="pre_2000", control="pre_500", metric=AT_500),
        Contrast(treatment="pre_500", control="pre_2000", metric=AT_2000),
        Contrast(treatment="pre_1000", control="pre_2000", metric=AT_2000),
        Contrast(treatment="pre_500", control="pre_500", metric=AT_1000, control_metric=f"untrained/{AT_1000}"),
        Contrast(treatment="pre_2000", control="pre_2000", metric=AT_1000, control_metric=f"untrained/{AT_1000}"),
    ),
    metric="test/knn_accuracy",
    margin=0.01,
    seeds_by_preset={"quick": 7, "laptop": 7},  # the fewest that can decide two primary contrasts: 2 x 2 / 2^7 = 0.031
)

if __name__ == "__main__":
    main(study)
