"""The `hob` command: it speaks HTTP to the daemon and nothing else."""
