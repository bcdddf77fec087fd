"""How much does anomaly detection depend on the score and its settings, against the geometry of the embedding?

Source   arXiv:2601.11719 compares six scores, at settings chosen on the test labels, for one encoder: open question 4.
Design   No training of its own: the arms are encoders of augmentation_ablation.py. When they are there, each of them,
         and its untrained start, is evaluated by six scores at 184 settings on six banks (two sizes, three draws), for
         W, Z and t. Settings are chosen on a synthetic signal of overlaid background jets; beside them stand the
         published ones and the oracle's.
Command  python studies/anomaly_metrics.py                         encoders, if they are not there, and some minutes
         python studies/anomaly_metrics.py --preset gpu            on one GPU (not timed yet)
         python studies/anomaly_metrics.py --address auto --preset paper --data jetnet
Read     The section on scores: the shares of the variance answer the question, the gap between chosen and oracle says
         what looking at the labels is worth. The verdict compares two scores of one encoder.
"""

from jbot.evaluation.anomaly.grid_settings import AnomalyGrid
from search_spaces import augmentation
from studies import Contrast, Study, main

KNN, GMM = "test/anomaly_knn_auc", "test/anomaly_gmm_auc"

study = Study(
    name="anomaly_metrics",
    question="How much does anomaly detection depend on the score and its settings, against the encoder?",
    base={"data.task": "qg"},
    arms={"paper": {}, "none": augmentation.only()},
    contrasts=(
        Contrast(treatment="paper", control="paper", metric=GMM, control_metric=KNN, primary=True),
        Contrast(treatment="none", control="none", metric=GMM, control_metric=KNN),
        Contrast(treatment="paper", control="none"),
        Contrast(treatment="paper", control="paper", control_metric=f"untrained/{KNN}"),
    ),
    metric=KNN,
    margin=0.01,
    anomaly_grid=AnomalyGrid(),
)

if __name__ == "__main__":
    main(study)
