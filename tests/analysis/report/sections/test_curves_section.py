"""Which columns of learning curves are drawn."""

import pandas as pd

from analysis.report.sections.curves import comparable


def test_of_anomaly_scores_the_auc_on_all_signals_is_drawn():
    rows = dict.fromkeys(
        [
            "epoch",
            "train/loss",
            "val/knn_accuracy",
            "student_entropy",
            "signal/anomaly_knn_auc",
            "signal/anomaly_knn_auc_w",
        ],
        1.0,
    )
    curves = pd.DataFrame([rows | {"state": "complete", "val/effective_rank": float("nan")}])
    assert comparable(curves) == ["val/knn_accuracy", "student_entropy", "signal/anomaly_knn_auc"]
