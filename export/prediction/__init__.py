"""Segment images, videos and cameras, and show what comes out. No torch here."""
