"""Looking back at predictions: what was served is what the log says, or why it is not."""
