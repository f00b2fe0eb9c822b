"""What a run needs beside its rules: the machine, the cluster, where it stands, what it costs."""
