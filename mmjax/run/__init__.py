"""What a run keeps on disk: manifests and digests of checkpoints."""
