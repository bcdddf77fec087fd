"""How does the embedding grow with unlabeled jets and with the size of the model?

Source   arXiv:2601.11719 trains two models (S, B) on one set of jets, and leaves open whether more jets would help.
Design   Training sets from 1/60 of the base to four (paper) and ten times it (gpu), past JetNet's 880,000 jets with
         generated ones, and four models of 5,000 to 220,000 weights. A larger set at fixed epochs also takes more
         optimiser steps, so each is trained at fixed steps too. Probes have equally many labels everywhere.
Command  python studies/scaling.py                                 some 22 minutes on two cores (51 x 52 s)
         python studies/scaling.py --preset gpu                    on one GPU (not timed yet)
         python studies/scaling.py --address auto --preset paper   845,000 to 2,945,000 generated jets
Read     The law of each line, or that laws are not separable, and the error at ten times the jets; fixed epochs and
         fixed steps apart. Contrasts are exploratory.
"""

from search_spaces.scaling import MODELS, arms, names
from studies import Contrast, Study, main

study = Study(
    name="scaling",
    question="How does the embedding improve with unlabeled jets and model size, at fixed epochs and at fixed steps?",
    arms=arms,
    contrasts=(
        Contrast(treatment="S_x2", control="S_x1"),
        Contrast(treatment="S_x2_steps", control="S_x1"),
        Contrast(treatment="S_x4", control="S_x1"),
        Contrast(treatment="S_x4_steps", control="S_x1"),
        Contrast(treatment="S_x1", control="S_x0.2_steps"),
        Contrast(treatment="B_x1", control="S_x1"),
    ),
    metric="test/knn_accuracy",
    margin=0.01,
    arms_by_preset={
        "smoke": ("S_x1", "S_x0.2", "S_x0.2_steps", "S_x0.4", "S_x0.4_steps", "XS_x1"),
        **dict.fromkeys(("quick", "laptop"), (*names(["S"], largest=2), "XS_x1", "M_x1", "B_x1")),
        "gpu": names(MODELS, largest=10),
        "paper": names(MODELS, largest=4),
    },
    seeds_by_preset={"quick": 3, "laptop": 3, "gpu": 3, "paper": 3},
)

if __name__ == "__main__":
    main(study)
