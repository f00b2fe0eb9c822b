"""Support for a run beside its rules: the machine, the cluster, progress and cost."""
