"""The media of requests: fetched, decoded in processes of their own, bounded, in turn."""
