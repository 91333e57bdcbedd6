"""One file a protocol; each only translates between HTTP and daemon.generation."""
