"""Procedural demo data, the recipes that train on it, and the small weights that ship.

Everything drawn here is a function of a seed: the same seed gives the same pixels. Nothing is
downloaded, so the demo weights can be trained, and their scores repeated, on any machine offline.
"""
