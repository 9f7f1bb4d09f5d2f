"""The same operations, faster; each has its plain form, and models/__init__.py chooses."""
