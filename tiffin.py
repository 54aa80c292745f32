"""The ``tiffin`` command."""


def main() -> None:
    """Run the command line."""
