"""A hyperparameter search: Optuna's points as trials."""
