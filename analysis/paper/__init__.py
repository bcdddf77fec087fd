"""The paper's tables with ours beside them: ``python -m analysis.paper <study folder>``."""
