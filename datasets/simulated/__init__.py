"""Simulated releases: formats (treesatai, pastis, flair), what is on the ground (forest, landscape), the command
(demo).
"""
