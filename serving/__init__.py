"""Everything that answers: the HTTP surface and what stands behind it."""
