"""Running Tiffin's servers."""
