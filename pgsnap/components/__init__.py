"""What plugins are written against: the four kinds, their values, events, hooks and the registry."""
