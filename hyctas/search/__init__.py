"""Search a space for the networks that no other beats in both mIoU and latency."""
