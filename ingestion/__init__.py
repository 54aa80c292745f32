"""Everything that writes features: events, the log, the worker, the archive, batch features."""
