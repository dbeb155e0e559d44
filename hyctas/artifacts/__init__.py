"""Keep run folders, find what they chose, and write bundles."""
