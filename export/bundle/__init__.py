"""Write and read bundles, and turn images into inputs. No torch here."""
