"""A study's report, from its records alone: ``python -m analysis.report <study folder>``."""
