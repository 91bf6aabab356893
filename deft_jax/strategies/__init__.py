"""How trees grow: the protocol of planners, and those that come with it."""
