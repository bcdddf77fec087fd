"""Trained encoders for other work: load, embed, import."""
