"""What a feature means and how it is stored. Imports nothing of the other rooms."""
