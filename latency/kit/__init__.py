"""Measure on devices that have no Python: a folder that `trtexec` works through, written here and read back."""
