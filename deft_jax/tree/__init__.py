"""The forest on the device: nodes, pages, slots; it knows no model, no strategy."""
