"""Our engines behind our API beside what a user would run instead, in one run: `run` asks, `side` is who is asked."""
