"""Trials -> packs -> Ray Tune -> records, and the MLflow view of them. The only importer of ray and mlflow."""
