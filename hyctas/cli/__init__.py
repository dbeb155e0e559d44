"""The commands. Nothing here imports torch before the arguments are read."""
