"""Real mounts and the objects behind the CDN."""
