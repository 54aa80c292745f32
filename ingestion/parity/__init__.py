"""The promise as a tool: random logs through the real fold, fence and merge, held against history and an oracle."""
