"""The MLflow view of a storage; records are the truth."""
