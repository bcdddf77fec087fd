"""Can these machines run a study? ``python -m cluster.doctor``."""
