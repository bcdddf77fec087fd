"""How a study runs: options, plan, jets, trials, report."""
