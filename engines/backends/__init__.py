"""What compiles and runs a bundle's graphs: one folder a target."""
