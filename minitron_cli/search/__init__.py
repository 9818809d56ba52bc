"""Floor 3: which shape? Candidates under a budget, ranked by quality: forecast, measured, refined."""
