"""`qv-export run`: the command, what it is asked, and its answer."""
