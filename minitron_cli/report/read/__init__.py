"""From files to values: what a run directory holds, as far as it has come."""
