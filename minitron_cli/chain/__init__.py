"""Floor 3: run a recipe. Finished steps are skipped, interrupted ones are resumed, changed ones are made again."""
