"""The methods that the DeFT paper compares, in one decode loop."""
