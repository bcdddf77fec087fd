"""Does clustering emerge, and how far do seeds alone move every metric?

Source   arXiv:2601.11719 shows clusters of one trained encoder; no seed was ever replicated.
Design   The base alone at 8 seeds. Each encoder is compared with itself before training, on the same test jets, in
         accuracy and in two measures of clustering that no label trains.
Command  python studies/baseline.py                                three and a half minutes on two cores (8 x 52 s)
         python studies/baseline.py --preset gpu                   on one GPU (not timed yet)
         python studies/baseline.py --address auto --preset paper --data jetnet
Read     base - untrained base: what pre-training adds. The table of seeds says what differences 6, 8, 10 ... paired
         seeds could detect of each metric: the pilot of every other study.
"""

from studies import Contrast, Study, main

study = Study(
    name="baseline",
    question="Does pre-training make the classes cluster, and how far do seeds alone move every metric?",
    arms={"base": {}},
    contrasts=(
        Contrast(treatment="base", control="base", control_metric="untrained/test/knn_accuracy", primary=True),
        *(
            Contrast(
                treatment="base", control="base", metric=f"test/{number}", control_metric=f"untrained/test/{number}"
            )
            for number in ("linear_accuracy", "kmeans_ami", "silhouette")
        ),
    ),
    metric="test/knn_accuracy",
    margin=0.01,
    seeds_by_preset={"quick": 8},
)

if __name__ == "__main__":
    main(study)
