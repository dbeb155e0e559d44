"""Write and read bundles, and run them on images without torch."""
