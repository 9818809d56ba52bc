"""From values and pictures to HTML: one module per section of the page."""
