"""Where a wrong engine first goes wrong."""
