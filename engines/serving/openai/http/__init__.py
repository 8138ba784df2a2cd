"""HTTP itself: connections, bytes in and out, who may ask, one log line a request."""
