"""What a config would take on a described machine."""
