"""How sensitive is the embedding to the weight of the KoLeo term?

Source   arXiv:2601.11719 sets the weight to 0.01 and scans nothing.
Design   The weight on a log axis, and 0, at the base's batch size and at four times it: KoLeo pushes each jet from the
         nearest of its batch, which is nearer in a larger one. All else is equal, so the larger batch also takes a
         quarter of the steps: compare weights within a batch size, not batch sizes.
Command  python studies/koleo_sweep.py                             some ten minutes on two cores (24 x 52 s)
         python studies/koleo_sweep.py --preset gpu                on one GPU (not timed yet)
         python studies/koleo_sweep.py --address auto --preset paper --data jetnet
Read     The response curves say how flat the optimum is. Uniformity and spread are what KoLeo optimises: no evidence.
"""

from search_spaces.koleo import names, sweep
from studies import SMALL, Contrast, Study, main

study = Study(
    name="koleo_sweep",
    question="How sensitive is the embedding to the weight of the KoLeo term?",
    arms=sweep,
    contrasts=(
        Contrast(treatment="koleo_0.01", control="koleo_0", primary=True),
        Contrast(treatment="koleo_0.01_large", control="koleo_0_large"),
        Contrast(treatment="koleo_0.1", control="koleo_0.01"),
        Contrast(treatment="koleo_0.1_large", control="koleo_0.01_large"),
    ),
    metric="test/knn_accuracy",
    margin=0.01,
    arms_by_preset=dict.fromkeys(SMALL, names(0.0, 1e-3, 1e-2, 1e-1)),
    seeds_by_preset={"quick": 3},
)

if __name__ == "__main__":
    main(study)
