"""The page of all questions: ``python -m analysis.index <storage>``."""
