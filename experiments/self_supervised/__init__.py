"""Self-supervised experiments, one file each."""
