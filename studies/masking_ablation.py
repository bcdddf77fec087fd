"""Does momentum-aware masking learn better jets than random or geometric masking?

Source   arXiv:2601.11719 proposes momentum-aware masking and compares it with nothing.
Design   Arms differ in mask.scheme alone and share weights, data order and masked share at each seed. The scheme draws
         particles uniformly and stops on momentum, so its control is `random_count`, which masks as many particles of
         each jet, drawn blindly; `random` masks a share of the count, the others ask whether the place in the jet, or
         the hardness of what is hidden, matters. Larger presets also scan the masked share, each with that control.
Command  python studies/masking_ablation.py                        a quarter of an hour on two cores, with jets
         python studies/masking_ablation.py --preset gpu           on one GPU (not timed yet)
         python studies/masking_ablation.py --address auto --preset paper --data jetnet
Read     The verdict on momentum - random_count decides the question; the other contrasts are exploratory.
"""

from search_spaces.masking import SCHEME, ratio_ranges
from studies import SMALL, Contrast, Study, main

RANGES = {
    "to_0.3": (0.0, 0.3),
    "to_0.7": (0.0, 0.7),
    "to_0.9": (0.0, 0.9),
    "from_0.25": (0.25, 0.5),
    "at_0.5": (0.5, 0.5),
}

study = Study(
    name="masking_ablation",
    question="Does momentum-aware masking learn better jet embeddings than random or geometric masking?",
    arms={scheme: SCHEME.arm(scheme) for scheme in SCHEME.values} | ratio_ranges(("momentum", "random_count"), RANGES),
    contrasts=(
        Contrast(treatment="momentum", control="random_count", primary=True),
        Contrast(treatment="momentum", control="random"),
        Contrast(treatment="momentum", control="geometric"),
        Contrast(treatment="momentum", control="none"),
        Contrast(treatment="geometric", control="geometric_count"),
        Contrast(treatment="hardest", control="softest"),
        *(Contrast(treatment=f"momentum_{share}", control=f"random_count_{share}") for share in RANGES),
    ),
    metric="test/knn_accuracy",
    margin=0.01,
    arms_by_preset=dict.fromkeys(SMALL, ("momentum", "random_count", "random", "geometric")),
)

if __name__ == "__main__":
    main(study)
