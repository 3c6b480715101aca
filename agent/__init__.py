"""Makes it so: the processes, the sinks and the doors."""
