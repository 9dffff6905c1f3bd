"""Building pages: plots, galleries and records in one HTML file."""
