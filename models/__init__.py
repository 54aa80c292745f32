"""Everything that learns: training sets, models, their registry."""
