"""A /data that differs between runners, as a distributed file system does: by setting."""
