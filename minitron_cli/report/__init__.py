"""Floor 3: a run directory as one HTML page: `read/` finds what is there, `sections/` and `draw/` say it, `templates/`
make HTML of it."""
