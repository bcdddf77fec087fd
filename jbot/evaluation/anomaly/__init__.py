"""Anomaly detection by an encoder that has seen background alone."""
