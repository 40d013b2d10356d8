"""Published networks by name."""
