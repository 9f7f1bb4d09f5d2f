"""What prepare.py checks, tile by tile, and how it tells."""
