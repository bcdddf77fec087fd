"""From records to tables, verdicts and reports: no Ray, no MLflow, no training."""
