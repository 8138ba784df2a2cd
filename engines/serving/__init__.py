"""What servers of any protocol share."""
