"""Partial attention of tiles of queries over the KV that they share."""
