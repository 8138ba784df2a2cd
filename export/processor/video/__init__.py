"""Videos to the frames that the model sees."""
