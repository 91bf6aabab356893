"""The host: requests in, trees out."""
