"""One model in several processes or threads: what they say to each other, and who starts them."""
