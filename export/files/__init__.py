"""Files of directories that others wrote: read within bounds, written so that nothing is half there."""
