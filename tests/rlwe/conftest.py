"""Property tests have no deadline: the first example of a shape pays for what later ones find in a cache."""

from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
