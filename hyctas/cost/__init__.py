"""Say what a network costs: workloads to profile, and predictions calibrated on whole networks."""
