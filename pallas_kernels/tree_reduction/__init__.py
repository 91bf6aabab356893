"""Merging the partial results of tiles that many workers share."""
