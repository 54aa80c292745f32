"""The definitions of feature_repo, as they are, for history of one's own in this folder's `data`."""

from feature_repo.definitions import *  # noqa: F403  # Feast registers every object that it finds here
