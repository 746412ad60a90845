"""Judging separators: sets of mixtures, systems that separate them, metrics, and a page that shows the outcome."""
