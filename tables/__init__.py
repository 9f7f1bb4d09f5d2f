"""The paper's tables: which commands make them, and our cells beside the printed ones."""
