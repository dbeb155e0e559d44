"""Define search spaces and what they offer. No torch here."""
