"""A checkpoint: found, judged, loaded, and evaluated."""
