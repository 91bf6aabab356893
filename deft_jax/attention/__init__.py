"""The op: attention of a step's query tokens over the forest."""
