"""Do augmentations, and physics-informed ones, make the embedding better for anomaly detection?

Source   arXiv:2601.11719 asks it in its outlook; its three augmentations were neither left out nor scanned.
Design   Encoders see q and g alone; the metric is how well W, Z and t together are found among them (AUC of the k-NN
         distance: published settings, no label, no fit). `paper` is the base; others have fewer augmentations, other
         strengths, or a boost, a translation, pT resolution and soft-particle dropout on top (`physics` is all four).
Command  python studies/augmentation_ablation.py                   some thirteen minutes on two cores (30 x 52 s)
         python studies/augmentation_ablation.py --preset gpu      on one GPU (not timed yet)
         python studies/augmentation_ablation.py --address auto --preset paper --data jetnet
Read     physics - paper decides; what the paper's own augmentations are worth, and the strengths, are exploratory.
"""

from math import pi

from search_spaces import augmentation as axes
from studies import SMALL, Contrast, Study, main

study = Study(
    name="augmentation_ablation",
    question="Do physics-informed augmentations make the embedding better for anomaly detection?",
    base={"data.task": "qg"},
    arms={
        "paper": {},
        "none": axes.only(),
        "rotation": axes.only("rotation"),
        "rotation_smearing": axes.only("rotation", "smearing"),
        "smearing": axes.only("smearing"),
        "splitting": axes.only("splitting"),
        **axes.scan("rotation", axes.ROTATION, (0.0, pi / 4, pi / 2)),
        **axes.scan("smear_sigma", axes.SMEARING, (0.0, 1e-4, 1e-3, 3e-3)),
        **axes.scan("split_fraction", axes.SPLITTING, (0.25, 0.5)),
        **axes.scan("split_low", axes.SPLIT_LOW, (0.0, 0.15, 0.5)),
        **axes.PHYSICS,
        "physics": {field: value for one in axes.PHYSICS.values() for field, value in one.items()},
    },
    contrasts=(
        Contrast(treatment="physics", control="paper", primary=True),
        Contrast(treatment="paper", control="none"),
        Contrast(treatment="paper", control="rotation"),
        Contrast(treatment="paper", control="rotation_smearing"),
        *(Contrast(treatment=name, control="none") for name in axes.PAPER),
        *(Contrast(treatment=name, control="paper") for name in axes.PHYSICS),
        Contrast(treatment="paper", control="paper", control_metric="untrained/test/anomaly_knn_auc"),
    ),
    metric="test/anomaly_knn_auc",
    margin=0.01,
    arms_by_preset=dict.fromkeys(SMALL, ("paper", "none", "rotation", "rotation_smearing", "physics")),
)

if __name__ == "__main__":
    main(study)
