"""What an engine must hold: limits by case, and invariants."""
