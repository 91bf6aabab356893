"""What people get: trees of text, counters and their pictures; host only."""
