"""One file per fal host."""
