"""From values to pictures: matplotlib figures as SVG that follows the theme of the page."""
