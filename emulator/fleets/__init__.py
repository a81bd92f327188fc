"""Deployments: which runners there are, and which calls they get."""
