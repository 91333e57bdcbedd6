"""What is on disk and on the wire: names, manifests, blobs, transfers. It knows no engine."""
