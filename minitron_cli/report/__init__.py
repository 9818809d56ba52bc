"""Floor 3: a run directory as one HTML page. `read/` finds what is there, `draw/` makes pictures, `sections/` words."""
