"""Floor 3: run a recipe. What is done is skipped, what was interrupted goes on, what changed is made again."""
