"""From values to tables, pictures and sentences: one module per section of the page."""
