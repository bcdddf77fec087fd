"""Anomaly detection by an encoder that has seen background alone."""


class AnomalyError(ValueError):
    """Jets or settings that cannot be scored. Its message is one line that names the rule and the value received."""
