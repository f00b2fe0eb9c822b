"""Support for a run beside its rules: the machine, the cluster and progress."""
