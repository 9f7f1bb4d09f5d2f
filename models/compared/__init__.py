"""The compared methods: a file for each network; supervised.py, fitted.py and self_supervised.py say which cells they
fill.
"""
