"""Explanations: what in a picture a classifier went by; one paper a module."""
