"""OmniSat, the methods that it is compared with, and the table of all of them (methods.py)."""
