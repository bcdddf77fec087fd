"""Run trials and leave their records."""
